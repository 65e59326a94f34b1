// The CUDA kernels of an optimizer's step over many parameter tensors against the CPU kernels, in both precisions, for every
// optimizer, with all of its settings and flags and with as few as it takes. Prints "right", or what differs.
#include "cpu/optimizer.hpp"

#include <cmath>
#include <cstdio>
#include <deque>
#include <limits>
#include <random>
#include <vector>

#include "cuda/optimizer.hpp"
#include "driver/any_optimizer.hpp"

namespace {

using pb::Index;
using pb::InnerOptimizer;

struct Case {
  InnerOptimizer optimizer;
  bool all;  // of its settings and flags
  std::vector<Index> sizes;
};

// A point, its cotangents, and room for all results, in buffers of the exact size. The same case gives the same numbers.
template <class T>
class Point {
 public:
  pb::OptimizerParams<T> params;
  std::vector<pb::OptimizerLeaf<T>> leaves;
  Index start = 3;

  explicit Point(const Case& c) {
    const pb::OptimizerInfo& row = pb::info(c.optimizer);
    params.row = static_cast<int>(c.optimizer);
    params.flags = c.all ? (1u << pb::kMaxFlags) - 1 : 0;
    unsigned present = 0;
    for (int i = 0; i < pb::kMaxSettings; ++i) {
      if (row.settings[i].empty() || (!c.all && i >= row.required)) continue;
      params.settings[i].value = {inputs(1, 0.2, 0.9), 0, 0};
      present |= 1u << i;
    }
    params.buffers = pb::count_buffers(row, present, params.flags);
    for (const Index size : c.sizes) add_leaf(size);
  }

  // All results but the cotangents of the settings.
  std::vector<T> outcome() const {
    std::vector<T> all;
    for (const std::vector<T>& part : results_) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

 private:
  void add_leaf(Index size) {
    pb::OptimizerLeaf<T>& leaf = leaves.emplace_back();
    leaf.size = size;
    leaf.g = inputs(size, -1, 1);
    leaf.g_bar = results(size);
    for (Index k = 0; k <= params.buffers; ++k) {
      // of a centered RMSprop, a mean square is more than the square of a mean
      leaf.state[k] = k == 0 ? inputs(size, -1, 1) : k == 1 ? inputs(size, 1, 2) : inputs(size, 0.1, 0.5);
      leaf.next_bar[k] = inputs(size, -1, 1);
      leaf.next[k] = results(size), leaf.bar[k] = results(size);
    }
  }

  T* inputs(Index count, double low, double high) {
    std::uniform_real_distribution<double> draw(low, high);
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) value = static_cast<T>(draw(random_));
    return kept_.emplace_back(std::move(values)).data();
  }

  T* results(Index count) {
    return results_.emplace_back(static_cast<std::size_t>(count), std::numeric_limits<T>::quiet_NaN()).data();
  }

  std::mt19937_64 random_{5};
  std::deque<std::vector<T>> kept_, results_;
};

// The results of step and pullback, the cotangents of the settings last.
template <class T>
std::vector<T> run_cpu(const Case& c) {
  Point<T> point(c);
  point.params.start = point.start;
  const pb::OptimizerEntries<T>& kernels = pb::optimizer_kernels_baseline.in<T>();
  const pb::Parallel parallel{[](Index count, pb::Parallel::Body body, void* context) {
    for (Index i = 0; i < count; ++i) body(context, i);
  }};
  const auto count = static_cast<Index>(point.leaves.size());
  double bars[pb::kMaxSettings];
  kernels.step(point.params, point.leaves.data(), count, parallel);
  kernels.pullback(point.params, point.leaves.data(), count, bars, parallel);
  std::vector<T> all = point.outcome();
  for (const double bar : bars) all.push_back(static_cast<T>(bar));
  return all;
}

// The steps before are counted on the host and on the device, one each.
template <class T>
std::vector<T> run_cuda(const Case& c) {
  Point<T> point(c);
  point.params.start = 1;
  const auto counted = static_cast<float>(point.start - 1);
  const pb::cuda::OptimizerCall<T> call{point.params, &counted, point.leaves.data(),
                                        static_cast<Index>(point.leaves.size()), nullptr};
  optimizer_step(call);
  std::vector<double> workspace(static_cast<std::size_t>(optimizer_workspace(call)),
                                std::numeric_limits<double>::quiet_NaN());
  std::vector<T> bars(pb::kMaxSettings, std::numeric_limits<T>::quiet_NaN());
  optimizer_pullback(call, workspace.data(), bars.data());
  std::vector<T> all = point.outcome();
  all.insert(all.end(), bars.begin(), bars.end());
  return all;
}

template <class T>
bool check(const Case& c, double tolerance) {
  const std::vector<T> got = run_cuda<T>(c), want = run_cpu<T>(c);
  if (got != run_cuda<T>(c)) {
    std::printf("wrong: optimizer %d is not repeatable\n", static_cast<int>(c.optimizer));
    return false;
  }
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double a = static_cast<double>(got[i]), b = static_cast<double>(want[i]);
    if (!(std::abs(a - b) <= tolerance * std::max(1.0, std::abs(b)))) {
      std::printf("wrong: optimizer %d, result %zu of %zu: %.17g on CUDA, %.17g on the CPU\n",
                  static_cast<int>(c.optimizer), i, want.size(), a, b);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // nothing is lost where a sanitizer ends the program
  bool right = true;
#ifdef PB_CUDA_EMULATOR_THREADS  // a host thread for each of 256
  for (const auto optimizer : {InnerOptimizer::kSgd, InnerOptimizer::kAdam})
    right &= check<double>({optimizer, true, {515}}, 1e-12);
#else
  // Parts of tiles, whole ones, two runs, empty and single ones.
  const std::vector<Index> few{5, 0, 513, 1, 2100, 512, 0};
  for (std::size_t i = 0; i < std::size(pb::kOptimizers); ++i) {
    for (const bool all : {false, true}) {
      const Case c{static_cast<InnerOptimizer>(i), all, few};
      right &= check<double>(c, 1e-12) & check<float>(c, 1e-4);
    }
  }
  // More leaves than one launch takes, and none.
  const std::vector<Index> many(130, 3);
  right &= check<float>({InnerOptimizer::kSgd, false, many}, 1e-4) &
           check<float>({InnerOptimizer::kAdam, true, many}, 1e-4) &
           check<double>({InnerOptimizer::kAdam, true, {}}, 0);
#endif
  if (right) std::puts("right");
  return right ? 0 : 1;
}
