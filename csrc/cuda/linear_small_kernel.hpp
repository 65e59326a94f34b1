// The kernel of small tasks and its launch, instantiated by linear_small_<precision>.cu: one launch each way, a block a task.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "cuda/linear_small.hpp"
#include "cuda/portability.hpp"
#include "cuda/small_forward.hpp"
#include "cuda/small_reverse.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::cuda {

inline constexpr int kSmallRows = static_cast<int>(kWarp), kSmallClasses = 10;  // at most

// Blocks of kMaxThreads in a multiprocessor: two where 128 registers are enough, hence eight blocks of 64 threads.
template <class T, int kClasses>
inline constexpr int kSmallBlocks = kClasses <= 5 && sizeof(T) == 4 ? 2 : 1;

template <class Types, bool kReverse>
__global__ void __launch_bounds__(kMaxThreads, kSmallBlocks<typename Types::T, Types::kClasses>)
    linear_small_kernel(const __grid_constant__ SmallParams<typename Types::Frame> p) {
  const std::conditional_t<kReverse, SmallReverse<Types>, SmallForward<Types>> half(p);
  half.run();
}

// f.template operator()<SmallTypes>() for a variant and its sizes.
template <class T, class F>
auto with_small_types(LinearVariant variant, const SmallSizes& sizes, F&& f) {
  return with_loss(variant.loss, [&]<class Loss, LinearLoss> {
    const auto with_classes = [&]<int kClasses, int kBuffers> {
      return with_optimizer<RowTeam<T, kClasses, kBuffers>, true>(variant.optimizer, [&]<class Optimizer> {
        return f.template operator()<SmallTypes<T, Loss, kClasses, kBuffers, Optimizer>>();
      });
    };
    if (sizes.classes <= 5) {
      return sizes.buffers ? with_classes.template operator()<5, 1>()
                           : with_classes.template operator()<5, 0>();
    }
    return sizes.buffers ? with_classes.template operator()<kSmallClasses, 1>()
                         : with_classes.template operator()<kSmallClasses, 0>();
  });
}

// A slot of `classes` classes, as RowTeam saves them.
template <class T>
SmallSizes small_sizes(const LinearParams<T>& p) {
  SmallSizes s{static_cast<int>(p.support.rows),
               static_cast<int>(p.query.rows),
               static_cast<int>(p.features),
               static_cast<int>(p.classes),
               p.w0 ? static_cast<int>(p.classes) : 0,
               static_cast<int>(p.optimizer.buffers),
               p.steps,
               p.plan_length,
               p.plan_split,
               0,
               0};
  const Index classes = s.classes <= 5 ? 5 : kSmallClasses, rows = s.rows * classes,
              slot = (1 + s.buffers) * (rows + classes + 1) + (p.keep ? rows : 0);
  s.tape = (p.slots + 1) * slot;
  s.task_tape = p.tape_size(slot, s.unit_bar() + p.classes * p.query.rows);
  return s;
}

// Threads for the inner products of the features, in tiles of 5 rows of the basis: two warps for 5 and 75 rows of 64
// features, so that eight blocks share a multiprocessor. The more steps, the fewer: then the recurrences of as many tasks
// as possible should run side by side. By sizes alone, never by the number of tasks: it decides the order of sums.
template <class T>
unsigned small_threads(const LinearParams<T>& p) {
  const Index rows = std::max(p.query.rows, p.support.rows), spans = p.support.rows + (p.w0 ? p.classes : 0),
              pieces = rows * p.features * Index(sizeof(T)) / 16 * ceil_div(spans, 5),
              wanted = pieces / (48 * (1 + p.steps / 16));
  return static_cast<unsigned>(std::clamp<Index>(round_up(wanted, kWarp), 2 * kWarp, kMaxThreads));
}

template <class T>
std::size_t small_shared_bytes(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                               bool staged) {
  const SmallSizes sizes = small_sizes(params);
  return with_small_types<T>(variant, sizes, [&]<class Types> {
    const auto threads = static_cast<int>(small_threads(params));
    return typename Types::Frame(params, sizes, threads, reverse, staged).shared_bytes();
  });
}

template <class T>
bool fits_small(const LinearParams<T>& params, LinearVariant variant, const Device& device) {
  if (variant.coordinates != Coordinates::kDual || params.support.rows > kSmallRows ||
      params.support.rows < 1 || params.classes > kSmallClasses || params.features < 1)
    return false;
  LinearParams<T> all = params;  // every cotangent is wanted, for the decision to be the same in both halves
  T somewhere;
  all.query.weights_bar.data = all.query.targets_bar.data = &somewhere;
  all.logits_bar.data = &somewhere;
  const std::size_t most =
      std::max(small_shared_bytes(all, variant, true, false), small_shared_bytes(all, variant, false, false));
  return most <= device.shared_bytes;
}

template <class T>
LinearLaunch plan_small(const LinearParams<T>& params, LinearVariant variant, bool reverse,
                        const Device& device) {
  if (!fits_small(params, variant, device))
    throw std::invalid_argument(
        "pybilevel: the kernel of small tasks needs dual coordinates, at most 32 rows and 10 "
        "classes, and room for the features in shared memory.");
  const std::size_t staged = small_shared_bytes(params, variant, reverse, true);
  return {.tape_size = small_sizes(params).task_tape,
          .workspace_size = 0,
          .blocks = static_cast<unsigned>(std::min<Index>(params.tasks, std::numeric_limits<int>::max())),
          .threads = small_threads(params),
          .shared_bytes =
              staged <= device.shared_bytes ? staged : small_shared_bytes(params, variant, reverse, false),
          .kernel = LinearKernel::kSmall};
}

template <class T>
void start_small(const LinearParams<T>& params, LinearVariant variant, bool reverse, const LinearLaunch& how,
                 void* stream) {
  const SmallSizes sizes = small_sizes(params);
  with_small_types<T>(variant, sizes, [&]<class Types> {
    const Grid grid{how.blocks, how.threads, how.shared_bytes, stream};
    const bool staged = how.shared_bytes == small_shared_bytes(params, variant, reverse, true);
    using Frame = typename Types::Frame;
    const SmallParams<Frame> p{params, Frame(params, sizes, static_cast<int>(how.threads), reverse, staged)};
    if (reverse) {
      launch(linear_small_kernel<Types, true>, grid, p, "linear_small_reverse");
    } else {
      launch(linear_small_kernel<Types, false>, grid, p, "linear_small_forward");
    }
  });
}

}  // namespace pb::cuda
