// The torch operators of the fused perceptrons: those of ops/linear.cpp with hidden layers before the linear model.
//
//   pybilevel::mlp_unroll, mlp_unroll_backward, mlp_scratch_bytes
//
// pybilevel/ops/mlp.py documents the arguments, and adds the fake and autograd registrations.
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "cpu/dispatch.hpp"
#include "ops/linear_call.hpp"
#include "ops/mlp_cuda.hpp"
#include "ops/torch_threads.hpp"
#include "ops/unroll_halves.hpp"

namespace pb {
namespace {

using at::Tensor;

#define PB_MLP_ARGUMENTS PB_LINEAR_ARGUMENTS, std::string_view activation, at::IntArrayRef sizes
#define PB_MLP_NAMES PB_LINEAR_NAMES, sizes, activation
#define PB_MLP_SCHEMA PB_LINEAR_SCHEMA ", str activation, int[] sizes"

void check(const LinearInputs& in) {
  TORCH_CHECK_VALUE(in.sizes.size() >= 2 && in.sizes.size() <= kMaxLayers + 1,
                    "pybilevel: sizes must name 2 to ", kMaxLayers + 1, " widths, got ", in.sizes);
  for (const Index size : in.sizes)
    TORCH_CHECK_VALUE(size >= 1, "pybilevel: sizes must be positive, got ", in.sizes);
  TORCH_CHECK_VALUE(in.x.dim() == 3 && in.x.size(2) == in.sizes.front() && in.classes == in.sizes.back(),
                    "pybilevel: sizes ", in.sizes, " go from the features of x ", in.x.sizes(), " to ",
                    in.classes, " outputs");
  TORCH_CHECK_VALUE(in.w0.has_value(), "pybilevel: a perceptron needs w0, since zeros do not train it");
  TORCH_CHECK_VALUE(in.variant().coordinates == Coordinates::kPrimal && in.bias,
                    "pybilevel: a perceptron has primal coordinates and biases");
  parse<Activation>("activation", in.activation, kActivations);
  in.check();
}

// The kernels of the perceptrons, as ops/unroll_halves.hpp wants them.
struct MlpEngine {
  template <class T>
  static MlpParams<T> params(const LinearCall<T>& call, const LinearInputs& in) {
    MlpParams<T> p{call.params};
    p.layers = static_cast<Index>(in.sizes.size()) - 1;
    std::copy(in.sizes.begin(), in.sizes.end(), p.sizes);
    p.activation = static_cast<int>(parse<Activation>("activation", in.activation, kActivations));
    return p;
  }

  template <class T>
  static MlpVariant variant(const LinearCall<T>& call) {
    return {call.variant.loss, call.variant.optimizer};
  }

  template <class T>
  static void run(const LinearCall<T>& call, const LinearInputs& in, bool reverse) {
#if PB_WITH_TORCH_CUDA
    if (in.x.is_cuda()) return run_cuda(params(call, in), variant(call), in.x, reverse);
#endif
    TORCH_CHECK(in.x.is_cpu(), "pybilevel: this build has no kernels for ", in.x.device());
    const MlpEntries<T>& kernels = cpu_mlp_kernels().in<T>();
    const Parallel parallel{run_on_torch_threads};
    (reverse ? kernels.reverse : kernels.forward)(params(call, in), variant(call), call.regime, parallel);
  }

  template <class T>
  static std::array<Index, 2> trajectory_shape(const LinearCall<T>& call, const LinearInputs& in) {
#if PB_WITH_TORCH_CUDA
    if (in.x.is_cuda()) return {call.params.tasks, tape_size_cuda(params(call, in), variant(call), in.x)};
#endif
    return {call.params.tasks, cpu_mlp_kernels().in<T>().tape_size(params(call, in), variant(call))};
  }

  template <class T>
  static Index scratch_bytes(const LinearCall<T>& call, const LinearInputs& in) {
#if PB_WITH_TORCH_CUDA
    if (in.x.is_cuda()) return scratch_bytes_cuda(params(call, in), variant(call), in.x);
#endif
    const MlpEntries<T>& kernels = cpu_mlp_kernels().in<T>();
    const MlpParams<T> all = params(call, in);
    return scratch_on_cpu(all, call.regime, sizeof(T), 1, kernels.scratch_bytes(all, variant(call)),
                          [&](const auto& p) { return kernels.tape_size(p, variant(call)); });
  }
};

}  // namespace

Forward mlp_forward(const LinearInputs& in) {
  check(in);
  return unroll<MlpEngine>(in);
}

LinearGradients::Array mlp_reverse(const LinearInputs& in, const LinearCotangents& bars, const Tensor& w,
                                   const Tensor& logits, Tensor& trajectory,
                                   const LinearGradients::Needs& needs) {
  check(in);
  return unroll_backward<MlpEngine>(in, bars, w, logits, trajectory, needs);
}

namespace {

Index mlp_scratch_bytes(PB_MLP_ARGUMENTS) {
  const LinearInputs in{PB_MLP_NAMES};
  check(in);
  return scratch_bytes<MlpEngine>(in);
}

Forward mlp_unroll(PB_MLP_ARGUMENTS) { return mlp_forward({PB_MLP_NAMES}); }

LinearGradients::Tuple mlp_unroll_backward(const std::optional<Tensor>& w_bar,
                                           const std::optional<Tensor>& buffers_bar,
                                           const std::optional<Tensor>& loss_bar,
                                           const std::optional<Tensor>& logits_bar, const Tensor& w,
                                           const Tensor& logits, Tensor trajectory, c10::List<bool> needs,
                                           PB_MLP_ARGUMENTS) {
  const LinearInputs in{PB_MLP_NAMES};
  const LinearCotangents bars{w_bar, buffers_bar, loss_bar, logits_bar};
  return tuple_of(mlp_reverse(in, bars, w, logits, trajectory, needs_of(needs)), x.options());
}

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("mlp_scratch_bytes(" PB_MLP_SCHEMA ") -> int");
  m.def("mlp_unroll(" PB_MLP_SCHEMA ") -> " PB_LINEAR_RESULTS);
  m.def("mlp_unroll_backward(" PB_LINEAR_BARS PB_MLP_SCHEMA ") -> " PB_LINEAR_COTANGENTS);
}

void implement(torch::Library& m) {
  m.impl("mlp_scratch_bytes", &mlp_scratch_bytes);
  m.impl("mlp_unroll", &mlp_unroll);
  m.impl("mlp_unroll_backward", &mlp_unroll_backward);
}

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) { implement(m); }
#if PB_WITH_TORCH_CUDA
TORCH_LIBRARY_IMPL(pybilevel, CUDA, m) { implement(m); }
#endif

}  // namespace
}  // namespace pb
