// The CUDA kernels of the perceptrons against the CPU kernels, in both precisions; and against themselves, bit for bit,
// under another plan, with predictions kept and with scratch in global memory. Prints "right", or what differs.
#include "cpu/mlp.hpp"

#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cuda/mlp.hpp"
#include "linear_case.hpp"

namespace {

using pb::Index;

constexpr auto kSoftmax = pb::LinearLoss::kSoftmax, kSquared = pb::LinearLoss::kSquared;
constexpr auto kPrimal = pb::Coordinates::kPrimal;
constexpr auto kSgd = pb::InnerOptimizer::kSgd, kAdam = pb::InnerOptimizer::kAdam;
constexpr pb::cuda::Device kLarge{227 * 1024, 132},
    kTiny{0, 1};  // tiny: no scratch fits, and few blocks at once

struct Network {
  Case data;  // features and classes are the first and the last width
  std::vector<Index> hidden;
  pb::Activation activation;
  bool keep = false;

  pb::MlpVariant variant() const { return {data.loss, data.optimizer}; }

  Index parameters() const {
    Index count = 0, before = data.features;
    for (const Index width : hidden) count += (before + 1) * width, before = width;
    return count + (before + 1) * data.classes;
  }

  // `batch` with the widths, which point where it does.
  template <class T>
  pb::MlpParams<T> params(const BatchOf<T>& batch) const {
    pb::MlpParams<T> p{batch.params};
    p.keep = keep;
    p.layers = static_cast<Index>(hidden.size()) + 1;
    p.sizes[0] = data.features;
    std::copy(hidden.begin(), hidden.end(), p.sizes + 1);
    p.sizes[p.layers] = data.classes;
    p.activation = static_cast<int>(activation);
    return p;
  }
};

// tape_size(params), and half(params, reverse) for either half.
template <class T, class Size, class Half>
std::vector<double> run(const Network& network, Size&& tape_size, Half&& half) {
  const auto batch_of = [&](Index tape) { return BatchOf<T>(network.data, tape, 1, network.parameters()); };
  BatchOf<T> sizing = batch_of(1), batch = batch_of(tape_size(network.params(sizing)));
  half(network.params(batch), false);
  batch.prepare_reverse();
  half(network.params(batch), true);
  return batch.outcome();
}

template <class T>
std::vector<double> run_cpu(const Network& network) {
  const pb::MlpEntries<T>& kernels = pb::mlp_kernels_baseline.in<T>();
  const pb::Parallel parallel{[](Index count, pb::Parallel::Body body, void* context) {
    for (Index i = 0; i < count; ++i) body(context, i);
  }};
  return run<T>(
      network, [&](const auto& params) { return kernels.tape_size(params, network.variant()); },
      [&](const auto& params, bool reverse) {
        (reverse ? kernels.reverse : kernels.forward)(params, network.variant(), pb::Regime::kTasks,
                                                      parallel);
      });
}

template <class T>
std::vector<double> run_cuda(const Network& network, const pb::cuda::Device& device) {
  const pb::MlpVariant variant = network.variant();
  return run<T>(
      network, [&](const auto& params) { return plan_mlp(params, variant, false, device).tape_size; },
      [&](pb::MlpParams<T> params, bool reverse) {
        const pb::cuda::LinearLaunch how = plan_mlp(params, variant, reverse, device);
        std::vector<T> workspace(static_cast<std::size_t>(how.workspace_size));
        params.workspace = workspace.data();
        (reverse ? pb::cuda::mlp_reverse<T> : pb::cuda::mlp_forward<T>)(params, variant, how, nullptr);
      });
}

bool close(const Network& network, double tolerance, const std::vector<double>& got,
           const std::vector<double>& want) {
  if (got.size() != want.size()) return false;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::abs(got[i] - want[i]) <= tolerance * std::max(1.0, std::abs(want[i])))) {
      std::printf("wrong: %s, result %zu of %zu: %.17g on CUDA, %.17g on the CPU\n", network.data.name, i,
                  want.size(), got[i], want[i]);
      return false;
    }
  }
  return true;
}

bool identical(const Network& network, const char* what, const std::vector<double>& got,
               const std::vector<double>& want) {
  if (got.size() == want.size() &&
      (got.empty() || std::memcmp(got.data(), want.data(), got.size() * sizeof(double)) == 0))
    return true;
  std::printf("wrong: %s changes bits with %s\n", network.data.name, what);
  return false;
}

template <class T>
bool check(const Network& network, double tolerance) {
  const std::vector<double> shared = run_cuda<T>(network, kLarge);
  bool right = close(network, tolerance, shared, run_cpu<T>(network)) &
               identical(network, "scratch in global memory", run_cuda<T>(network, kTiny), shared);
  if (network.data.steps < 3) return right;
  Network other = network;
  other.data.slots = network.data.slots >= 0 ? -1 : 2;
  right &= identical(network, "another plan", run_cuda<T>(other, kLarge), shared);
  other.keep = !network.keep;
  return right & identical(network, "another plan and predictions", run_cuda<T>(other, kLarge), shared);
}

// Sizes that 31-bit indices cannot reach are refused before anything starts.
bool refuses_large_tasks() {
  pb::MlpParams<double> params;
  params.tasks = 1, params.layers = 2, params.support.rows = 10;
  params.sizes[0] = params.sizes[1] = 1 << 15, params.sizes[2] = 1;
  try {
    plan_mlp(params, {kSquared}, false, kLarge);
  } catch (const std::invalid_argument& error) {
    return std::strstr(error.what(), "1073807361 parameters on 10 rows exceeds") != nullptr;
  }
  std::puts("wrong: a task that is too large is not refused");
  return false;
}

// {name, loss, coordinates, tasks, rows, queries, features, classes, steps, slots,
//  momentum, nesterov, decay, soft, w0, velocity0, bias, optimizer, start}, hidden widths, activation, predictions kept
const Network kNetworks[] = {
    {{"momentum", kSquared, kPrimal, 2, 4, 3, 3, 2, 3, 1, true, true, true, true, true, true, true, kSgd},
     {5, 4},
     pb::Activation::kTanh},
    {{"adam", kSoftmax, kPrimal, 2, 4, 3, 2, 3, 3, -1, false, false, true, false, true, true, true, kAdam, 4},
     {6},
     pb::Activation::kElu,
     true},
#ifndef PB_CUDA_EMULATOR_THREADS
    {{"sinusoid", kSquared, kPrimal, 1, 10, 10, 1, 1, 2, -1, false, false, false, true, true},
     {40, 40},
     pb::Activation::kSoftplus,
     true},
    {{"no hidden layer", kSoftmax, kPrimal, 2, 5, 3, 4, 3, 3, -1, true, false, false, true, true},
     {},
     pb::Activation::kRelu},
    {{"deep, rmsprop", kSoftmax, kPrimal, 1, 33, 0, 2, 2, 3, 2, false, false, true, true, true, false, true,
      pb::InnerOptimizer::kRmsProp},
     {3, 1, 2},
     pb::Activation::kSigmoid},
    {{"adamw", kSquared, kPrimal, 1, 3, 2, 2, 1, 3, 1, false, false, true, true, true, true, true,
      pb::InnerOptimizer::kAdamW},
     {7},
     pb::Activation::kRelu},
    {{"adagrad", kSquared, kPrimal, 1, 3, 2, 2, 1, 2, 1, false, false, true, true, true, true, true,
      pb::InnerOptimizer::kAdagrad},
     {7},
     pb::Activation::kSoftplus},
    {{"no steps", kSquared, kPrimal, 2, 3, 2, 2, 1, 0, -1, false, false, false, true, true},
     {4},
     pb::Activation::kTanh},
    {{"no tasks", kSquared, kPrimal, 0, 3, 2, 2, 1, 2, -1, false, false, false, true, true},
     {4},
     pb::Activation::kTanh},
#endif
};

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // nothing is lost where a sanitizer ends the program
  bool right = refuses_large_tasks();
  for (const Network& network : kNetworks)
    right &= check<double>(network, 1e-11) & check<float>(network, 2e-3);
  if (right) std::puts("right");
  return right ? 0 : 1;
}
