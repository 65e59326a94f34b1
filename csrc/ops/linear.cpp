// The torch operators of the fused linear problems: checks, allocation, dispatch.
//
//   pybilevel::linear_unroll            the whole unroll and, where there is a query set, the outer objective
//   pybilevel::linear_unroll_backward   every cotangent, by the reverse half of the plan; may overwrite the trajectory
//
// pybilevel/ops/linear.py documents the arguments, and adds the fake and autograd registrations.
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "cpu/dispatch.hpp"
#include "ops/linear_call.hpp"
#include "ops/linear_cuda.hpp"
#include "ops/torch_threads.hpp"
#include "ops/unroll_halves.hpp"

namespace pb {
namespace {

using at::Tensor;

// What only linear problems have, behind what they share with perceptrons; the empty names are a perceptron's.
#define PB_ROUNDED_ARGUMENTS PB_LINEAR_ARGUMENTS, std::string_view precision
#define PB_ROUNDED_NAMES PB_LINEAR_NAMES, {}, {}, precision
#define PB_ROUNDED_SCHEMA PB_LINEAR_SCHEMA ", str precision=\"fp32\""

// The kernels of the linear problems, as ops/unroll_halves.hpp wants them.
struct LinearEngine {
  template <class T>
  static void run(const LinearCall<T>& call, const LinearInputs& in, bool reverse) {
#if PB_WITH_TORCH_CUDA
    if (in.x.is_cuda())
      return run_cuda(call.params, call.variant, call.regime == Regime::kRows, in.x, reverse);
#endif
    TORCH_CHECK(in.x.is_cpu(), "pybilevel: this build has no kernels for ", in.x.device());
    const LinearEntries<T>& kernels = cpu_kernels().in<T>();
    const Parallel parallel{run_on_torch_threads};
    (reverse ? kernels.reverse : kernels.forward)(call.params, call.variant, call.regime, parallel);
  }

  // B is rounded up to the tasks whose numbers are interleaved.
  template <class T>
  static std::array<Index, 2> trajectory_shape(const LinearCall<T>& call,
                                               [[maybe_unused]] const LinearInputs& in) {
    const Index tasks = call.params.tasks;
#if PB_WITH_TORCH_CUDA
    if (in.x.is_cuda())
      return {tasks, tape_size_cuda(call.params, call.variant, call.regime == Regime::kRows, in.x)};
#endif
    const LinearKernels& kernels = cpu_kernels();
    return {round_up(tasks, tasks_together(call.regime, kernels.pack_bytes, sizeof(T))),
            kernels.in<T>().tape_size(call.params, call.variant, call.regime)};
  }

  template <class T>
  static Index scratch_bytes(const LinearCall<T>& call, [[maybe_unused]] const LinearInputs& in) {
#if PB_WITH_TORCH_CUDA
    if (in.x.is_cuda())
      return scratch_bytes_cuda(call.params, call.variant, call.regime == Regime::kRows, in.x);
#endif
    const LinearEntries<T>& kernels = cpu_kernels().in<T>();
    const Index together = tasks_together(call.regime, cpu_kernels().pack_bytes, sizeof(T));
    return scratch_on_cpu(call.params, call.regime, sizeof(T), together,
                          kernels.scratch_bytes(call.params, call.variant, call.regime),
                          [&](const auto& p) { return kernels.tape_size(p, call.variant, call.regime); });
  }
};

}  // namespace

Forward linear_forward(const LinearInputs& in) {
  in.check();
  return unroll<LinearEngine>(in);
}

LinearGradients::Array linear_reverse(const LinearInputs& in, const LinearCotangents& bars, const Tensor& w,
                                      const Tensor& logits, Tensor& trajectory,
                                      const LinearGradients::Needs& needs) {
  in.check();
  return unroll_backward<LinearEngine>(in, bars, w, logits, trajectory, needs);
}

namespace {

Index linear_scratch_bytes(PB_ROUNDED_ARGUMENTS) {
  const LinearInputs in{PB_ROUNDED_NAMES};
  in.check();
  return scratch_bytes<LinearEngine>(in);
}

Forward linear_unroll(PB_ROUNDED_ARGUMENTS) { return linear_forward({PB_ROUNDED_NAMES}); }

LinearGradients::Tuple linear_unroll_backward(const std::optional<Tensor>& w_bar,
                                              const std::optional<Tensor>& buffers_bar,
                                              const std::optional<Tensor>& loss_bar,
                                              const std::optional<Tensor>& logits_bar, const Tensor& w,
                                              const Tensor& logits, Tensor trajectory, c10::List<bool> needs,
                                              PB_ROUNDED_ARGUMENTS) {
  const LinearInputs in{PB_ROUNDED_NAMES};
  const LinearCotangents bars{w_bar, buffers_bar, loss_bar, logits_bar};
  return tuple_of(linear_reverse(in, bars, w, logits, trajectory, needs_of(needs)), x.options());
}

TORCH_LIBRARY(pybilevel, m) {
  m.def("linear_scratch_bytes(" PB_ROUNDED_SCHEMA ") -> int");
  m.def("linear_unroll(" PB_ROUNDED_SCHEMA ") -> " PB_LINEAR_RESULTS);
  m.def("linear_unroll_backward(" PB_LINEAR_BARS PB_ROUNDED_SCHEMA ") -> " PB_LINEAR_COTANGENTS);
}

void implement(torch::Library& m) {
  m.impl("linear_scratch_bytes", &linear_scratch_bytes);
  m.impl("linear_unroll", &linear_unroll);
  m.impl("linear_unroll_backward", &linear_unroll_backward);
}

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) { implement(m); }
#if PB_WITH_TORCH_CUDA
TORCH_LIBRARY_IMPL(pybilevel, CUDA, m) { implement(m); }
#endif

}  // namespace
}  // namespace pb
