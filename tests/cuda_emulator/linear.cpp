// The CUDA kernels of the linear problems against the CPU kernels, in double precision; and against themselves, bit
// for bit, under another plan and with scratch in global memory. Prints "right", or what differs.
#include "cpu/linear.hpp"

#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "cuda/linear.hpp"
#include "cuda/linear_small.hpp"
#include "linear_case.hpp"

namespace {

using pb::Coordinates;
using pb::Index;
using pb::InnerOptimizer;
using pb::LinearLoss;
using pb::cuda::LinearKernel;

constexpr auto kSoftmax = LinearLoss::kSoftmax, kSquared = LinearLoss::kSquared;
constexpr auto kAdam = InnerOptimizer::kAdam, kAdamW = InnerOptimizer::kAdamW,
               kRmsProp = InnerOptimizer::kRmsProp, kAdagrad = InnerOptimizer::kAdagrad;
constexpr auto kPrimal = Coordinates::kPrimal, kDual = Coordinates::kDual, kNormal = Coordinates::kNormal;

// How the tasks run, and on which device.
struct Run {
  pb::cuda::Device device;
  LinearKernel kernel = LinearKernel::kBlock;
};
constexpr Run kLarge{{227 * 1024, 132}}, kTiny{{0, 1}};  // tiny: no scratch fits, and few blocks at once
constexpr Run kSmall{{227 * 1024, 132}, LinearKernel::kSmall};
#ifdef PB_CUDA_EMULATOR_THREADS
constexpr int kFew = 1, kOther = 1;  // two blocks of host threads
#else
constexpr int kFew = 2, kOther = 3;
#endif
constexpr std::size_t kBuffers[] = {0, 2, 3};  // of rows: read where they are, all streamed, one kept

std::vector<double> run_cpu(const Case& c) {
  const pb::LinearEntries<double>& kernels = pb::linear_kernels_baseline.in<double>();
  const pb::LinearVariant variant = c.variant();
  Batch batch(c, kernels.tape_size(Batch(c, 1).params, variant, pb::Regime::kTasks));
  const pb::Parallel parallel{[](Index count, pb::Parallel::Body body, void* context) {
    for (Index i = 0; i < count; ++i) body(context, i);
  }};
  kernels.forward(batch.params, variant, pb::Regime::kTasks, parallel);
  batch.prepare_reverse();
  kernels.reverse(batch.params, variant, pb::Regime::kTasks, parallel);
  return batch.outcome();
}

void run_half(Batch& batch, const Case& c, const Run& run, bool reverse) {
  const pb::LinearVariant variant = c.variant();
  const pb::cuda::LinearLaunch how = plan_linear(batch.params, variant, run.kernel, reverse, run.device);
  std::vector<double> workspace(static_cast<std::size_t>(how.workspace_size));
  batch.params.workspace = workspace.data();
  if (reverse) {
    linear_reverse(batch.params, variant, how, nullptr);
  } else {
    linear_forward(batch.params, variant, how, nullptr);
  }
}

std::vector<double> run_cuda(const Case& c, const Run& run) {
  const pb::LinearVariant variant = c.variant();
  Batch batch(c, plan_linear(Batch(c, 1).params, variant, run.kernel, false, run.device).tape_size);
  run_half(batch, c, run, false);
  batch.prepare_reverse();
  run_half(batch, c, run, true);
  return batch.outcome();
}

bool close(const Case& c, const std::vector<double>& got, const std::vector<double>& want) {
  double error = got.size() == want.size() ? 0 : 1;
  for (std::size_t i = 0; i < want.size() && error == 0; ++i) {
    const double scale = std::max(1.0, std::abs(want[i]));
    if (!(std::abs(got[i] - want[i]) <= 1e-11 * scale)) {
      std::printf("wrong: %s, result %zu of %zu: %.17g on CUDA, %.17g on the CPU\n", c.name, i, want.size(),
                  got[i], want[i]);
      return false;
    }
  }
  return error == 0;
}

bool identical(const Case& c, const char* what, const std::vector<double>& got,
               const std::vector<double>& want) {
  if (got.empty() && want.empty()) return true;
  if (got.size() == want.size() && std::memcmp(got.data(), want.data(), got.size() * sizeof(double)) == 0)
    return true;
  std::printf("wrong: %s changes bits with %s\n", c.name, what);
  return false;
}

// The kernel of small tasks, where it is for the case.
bool check_small(const Case& c, const std::vector<double>& cpu) {
  const pb::LinearVariant variant = c.variant();
  if (plan_linear(Batch(c, 1).params, variant, LinearKernel::kChoose, false, kSmall.device).kernel !=
      LinearKernel::kSmall)
    return true;
  const std::vector<double> small = run_cuda(c, kSmall);
  // Room for the task, but for nothing staged.
  const Batch batch(c, 1);
  Run bare = kSmall;
  bare.device.shared_bytes = 0;
  while (!fits_small(batch.params, variant, bare.device)) bare.device.shared_bytes += 64;
  bool right = close(c, small, cpu) & identical(c, "nothing staged", run_cuda(c, bare), small);
  if (c.steps > 2) {
    Case other = c;
    other.slots = c.slots >= 0 ? -1 : 2;
    right &= identical(c, "another plan of a small task", run_cuda(other, kSmall), small);
  }
  return right;
}

// On the grid, with at least two blocks: one a multiprocessor where blocks keep rows.
Run on_grid(const Case& c, int multiprocessors) {
  if (c.coordinates == kPrimal && multiprocessors == 1) multiprocessors = 2;
  return {{227 * 1024, multiprocessors}, LinearKernel::kGrid};
}

// Rows read from global memory, streamed through shared memory, and kept there in part.
bool check_rows(const Case& c, const std::vector<double>& grid) {
  const Batch batch(c, 1);
  const auto plan = [&](std::size_t bytes) {
    return plan_linear(batch.params, c.variant(), LinearKernel::kGrid, false, {bytes, 1});
  };
  const auto all = plan(std::size_t{1} << 30);
  if (all.buffers < 4) return true;
  const std::size_t none = plan(0).shared_bytes, each = (all.shared_bytes - none) / all.buffers;
  bool right = true;
  for (const std::size_t buffers : kBuffers) {
    const Run run{{none + buffers * each, 1}, LinearKernel::kGrid};
    right &= identical(c, "other rows in shared memory", run_cuda(c, run), grid);
    if (plan(run.device.shared_bytes).buffers == int(buffers)) continue;
    std::printf("wrong: not %zu buffers\n", buffers);
    right = false;
  }
  return right;
}

bool check(const Case& c) {
  const std::vector<double> cpu = run_cpu(c), shared = run_cuda(c, kLarge),
                            grid = run_cuda(c, on_grid(c, kFew));
  bool right = close(c, shared, cpu) & close(c, grid, cpu) &
               identical(c, "scratch in global memory", run_cuda(c, kTiny), shared) &
               identical(c, "other blocks", run_cuda(c, on_grid(c, kOther)), grid);
  if (c.steps > 2) {
    Case other = c;
    other.slots = c.slots >= 0 ? -1 : 2;
    right &= identical(c, "another plan", run_cuda(other, kLarge), shared) &
             identical(c, "another plan on the grid", run_cuda(other, on_grid(c, kFew)), grid);
  }
  return right & check_small(c, cpu) & check_rows(c, grid);
}

// The first t whose model is not finite, the same on all kernels: steps so long that they overflow.
bool reports_overflow() {
  const Case c{"overflow", kSquared, kDual, 2, 3, 2, 4, 2, 6, -1, true};
  const std::vector<double> long_steps(static_cast<std::size_t>(c.steps), 1e90);
  const auto statuses = [&](LinearKernel kernel) {
    Batch batch(c, plan_linear(Batch(c, 1).params, c.variant(), kernel, false, kLarge.device).tape_size);
    batch.params.optimizer.settings[0].value = {long_steps.data(), 0, 1};
    run_half(batch, c, {kLarge.device, kernel}, false);
    return std::vector<int>(batch.params.status, batch.params.status + c.tasks);
  };
  const std::vector<int> small = statuses(LinearKernel::kSmall);
  if (small == statuses(LinearKernel::kBlock) && small[0] > 1 && small[0] < c.steps) return true;
  std::printf("wrong: the first bad step, %d\n", small[0]);
  return false;
}

// One large task has the whole device, many or small ones a block each; the smallest ones their own kernel.
bool chooses_kernel() {
  pb::LinearParams<double> params;
  params.features = 784, params.classes = 10;
  const auto chosen = [&](Index tasks, Index rows, Coordinates coordinates) {
    params.tasks = tasks, params.support.rows = rows;
    return plan_linear(params, {kSoftmax, coordinates}, LinearKernel::kChoose, false, kLarge.device).kernel;
  };
  if (chosen(1, 20000, kPrimal) == LinearKernel::kGrid && chosen(8, 20000, kPrimal) == LinearKernel::kGrid &&
      chosen(64, 20000, kPrimal) == LinearKernel::kBlock && chosen(1, 25, kPrimal) == LinearKernel::kBlock &&
      chosen(64, 5, kDual) == LinearKernel::kSmall && chosen(64, 33, kDual) == LinearKernel::kBlock)
    return true;
  std::puts("wrong: the kernel that is chosen");
  return false;
}

// As many blocks of rows in shared memory as there is room for, none without two to stream through.
bool counts_buffers() {
  pb::LinearParams<double> params;
  params.tasks = 1, params.classes = 10;
  const auto buffers = [&](Index rows, Index features, std::size_t bytes) {
    params.support.rows = rows, params.features = features;
    const auto how = plan_linear(params, {kSoftmax, kPrimal}, LinearKernel::kGrid, false,
                                 {bytes, kLarge.device.multiprocessors});
    return how.shared_bytes <= bytes ? how.buffers : -1;
  };
  const std::size_t most = kLarge.device.shared_bytes;
  if (buffers(20000, 784, most) == 4 && buffers(20000, 784, most / 2) == 2 && buffers(2000, 784, most) == 2 &&
      buffers(20000, 100, most) == 10 && buffers(20000, 2000, most) == 0)
    return true;
  std::puts("wrong: the rows in shared memory");
  return false;
}

// Sizes that 31-bit indices cannot reach are refused before anything starts.
bool refuses_large_tasks() {
  pb::LinearParams<double> params;
  params.tasks = 1, params.features = 1 << 20, params.classes = 10, params.support.rows = 1 << 10;
  try {
    plan_linear(params, {kSoftmax, kPrimal}, LinearKernel::kChoose, false, kLarge.device);
  } catch (const std::invalid_argument& error) {
    return std::strstr(error.what(), "1024 rows, 1048576 features and 10 classes exceeds") != nullptr;
  }
  return false;
}

// name, loss, coordinates, tasks, rows, queries, features, classes, steps, slots,
// momentum, nesterov, decay, soft, w0, velocity0, bias, optimizer, start
const Case kCases[] = {
    {"few-shot", kSoftmax, kPrimal, 3, 5, 7, 9, 3, 4},
    {"few-shot, dual", kSoftmax, kDual, 3, 5, 7, 9, 3, 4},
    {"everything", kSoftmax, kPrimal, 2, 7, 3, 5, 3, 3, 1, true, true, true, true, true, true, true},
    {"everything, dual", kSoftmax, kDual, 2, 7, 3, 5, 3, 3, 1, true, true, true, true, true, false, true},
    {"adam", kSoftmax, kPrimal, 2, 5, 3, 6, 3, 3, 1, false, false, true, false, true, true, true, kAdam, 4},
    {"rmsprop", kSquared, kPrimal, 2, 5, 3, 6, 2, 3, 1, false, false, true, false, true, true, true,
     kRmsProp},
    {"squared", kSquared, kPrimal, 2, 3, 4, 6, 2, 3, -1, true, false, false, true, true, false, false},
    {"squared, dual", kSquared, kDual, 2, 3, 4, 6, 2, 3, -1, true, false, false, true, true, false, false},
    {"squared, normal", kSquared, kNormal, 2, 3, 4, 6, 2, 3, -1, true, false, false, true, true, false,
     false},
    {"rows kept", kSoftmax, kPrimal, 1, 50, 1, 7, 2, 1},
#ifndef PB_CUDA_EMULATOR_THREADS
    {"adamw", kSquared, kPrimal, 2, 5, 3, 6, 2, 4, -1, false, false, true, false, false, false, true, kAdamW},
    {"adagrad", kSoftmax, kPrimal, 2, 5, 3, 6, 3, 4, 2, false, false, true, true, true, true, true, kAdagrad,
     2},
    {"no query", kSoftmax, kPrimal, 2, 4, 0, 3, 2, 5, 2, true},
    {"no query, dual", kSoftmax, kDual, 2, 4, 0, 3, 2, 5, 2, true},
    {"one of all", kSquared, kPrimal, 1, 1, 1, 1, 1, 1},
    {"one of all, dual", kSquared, kDual, 1, 1, 1, 1, 1, 1},
    {"no steps", kSoftmax, kPrimal, 2, 3, 2, 4, 3, 0, -1, false, false, false, false, true},
    {"ten classes, dual", kSoftmax, kDual, 2, 11, 9, 34, 10, 3, 1, true, false, true, true, true},
    {"wide, dual", kSquared, kDual, 2, 6, 40, 300, 7, 3, -1, false, false, false, true, true, false, false},
    {"32 rows, dual", kSoftmax, kDual, 1, 32, 70, 12, 5, 4, 2, true, true},
    {"no steps, dual", kSoftmax, kDual, 2, 3, 2, 4, 3, 0, -1, false, false, false, false, true},
    {"many rows", kSoftmax, kPrimal, 1, 260, 70, 6, 2, 2, 1, true},
    {"many rows, dual", kSoftmax, kDual, 1, 70, 3, 67, 3, 2, 1, false, false, true, true, true},
    {"many rows, normal", kSquared, kNormal, 1, 150, 3, 17, 3, 3, 1, true, false, true, true, true, true,
     true},
    {"no tasks", kSoftmax, kPrimal, 0, 3, 2, 4, 3, 2},
#endif
};

}  // namespace

int main() {
  bool right = refuses_large_tasks() & chooses_kernel() & counts_buffers() & reports_overflow();
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // nothing is lost where a sanitizer ends the program
  for (const Case& c : kCases) right &= check(c);
  if (right) std::puts("right");
  return right ? 0 : 1;
}
