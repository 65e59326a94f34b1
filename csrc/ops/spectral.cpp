// The torch operators of the spectral method, on a CPU. No autograd, no fake implementation: its node calls them.
//
//   pybilevel::spectral_normal   X^T S X
//   pybilevel::spectral_pairs    products, weighted by divided differences
//
// pybilevel/ops/spectral.py documents the arguments.
#include "cpu/spectral.hpp"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <optional>
#include <string_view>

#include "cpu/dispatch.hpp"
#include "ops/torch_threads.hpp"

namespace pb {
namespace {

using at::Tensor;

const SpectralKernels& spectral_kernels() {
#if PB_X86
  const std::string_view isa = cpu_kernels().isa;
  if (isa == "avx512") return spectral_kernels_avx512;
  if (isa == "avx2") return spectral_kernels_avx2;
#endif
  return spectral_kernels_baseline;
}

Index tasks_of(const Tensor& t, Index data_dims) {
  Index tasks = 1;
  for (Index i = 0; i < t.dim() - data_dims; ++i) tasks *= t.size(i);
  return tasks;
}

Tensor normal(const Tensor& x_given, const Tensor& scale_given) {
  TORCH_CHECK_VALUE(x_given.dim() >= 2, "pybilevel: x must be [*B, n, D], got ", x_given.sizes());
  const auto rows = x_given.sizes().slice(0, x_given.dim() - 1);
  TORCH_CHECK_VALUE(scale_given.sizes() == rows, "pybilevel: scale must be ", rows, ", got ",
                    scale_given.sizes());
  TORCH_CHECK_TYPE(x_given.scalar_type() == at::kDouble && scale_given.scalar_type() == at::kDouble,
                   "pybilevel: x and scale must be float64, got ", x_given.scalar_type(), " and ",
                   scale_given.scalar_type());
  const Tensor x = x_given.contiguous(), scale = scale_given.contiguous();
  std::vector<Index> shape = x.sizes().vec();
  shape[shape.size() - 2] = shape.back();
  const Tensor h = at::empty(shape, x.options());
  spectral_kernels().normal_matrix({tasks_of(x, 2), x.size(-2), x.size(-1), x.const_data_ptr<double>(),
                                    scale.const_data_ptr<double>(), h.mutable_data_ptr<double>()},
                                   {run_on_torch_threads});
  return h;
}

template <class T>
Tensor run_pairs(const Tensor& step, const Tensor& slope, Index steps,
                 const std::vector<std::optional<Tensor>>& products, const Tensor& like) {
  PairsParams<T> params;
  params.tasks = tasks_of(like, 2);
  params.width = like.size(-1);
  params.states = static_cast<int>(slope.size(0));
  params.steps = steps;
  params.step = step.const_data_ptr<double>();
  params.slope = slope.const_data_ptr<double>();
  for (std::size_t e = 0; e < products.size(); ++e)
    params.products[e] = products[e] ? products[e]->template const_data_ptr<T>() : nullptr;
  const Tensor sum = at::empty(like.sizes(), like.options());
  params.sum = sum.mutable_data_ptr<T>();
  spectral_kernels().in<T>().pairs(params, {run_on_torch_threads});
  return sum;
}

Tensor pairs(const Tensor& step, const Tensor& slope, Index steps,
             const c10::List<std::optional<Tensor>>& given) {
  const Index states = slope.dim() > 0 ? slope.size(0) : 0;
  TORCH_CHECK_VALUE(states == 1 || states == 2, "pybilevel: slope must be [1 or 2, *B], got ", slope.sizes());
  TORCH_CHECK_VALUE(steps >= 1, "pybilevel: steps must be at least 1, got ", steps);
  const Index entries = states * (states + 1);
  TORCH_CHECK_VALUE(
      step.dim() == slope.dim() + 1 && step.size(0) == entries && static_cast<Index>(given.size()) == entries,
      "pybilevel: step must be [", entries, ", *B, r], with as many products, got ", step.sizes(), " and ",
      given.size());
  TORCH_CHECK_TYPE(step.scalar_type() == at::kDouble && slope.scalar_type() == at::kDouble,
                   "pybilevel: step and slope must be float64");
  std::vector<Index> shape = step.sizes().slice(1).vec();
  shape.push_back(shape.back());
  std::vector<std::optional<Tensor>> products(entries);
  Tensor like;
  for (Index e = 0; e < entries; ++e) {
    const std::optional<Tensor> product = given.get(e);
    if (!product) continue;
    products[e] = product->contiguous();
    if (!like.defined()) like = *products[e];
    TORCH_CHECK_VALUE(
        product->sizes() == at::IntArrayRef(shape) && product->scalar_type() == like.scalar_type(),
        "pybilevel: products must be ", shape, " and of one dtype, got ", product->sizes(), " of ",
        product->scalar_type());
  }
  TORCH_CHECK_VALUE(like.defined(), "pybilevel: no product is given");
  TORCH_CHECK_TYPE(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
                   "pybilevel: products must be float32 or float64, got ", like.scalar_type());
  const Tensor step_values = step.contiguous(), slope_values = slope.contiguous();
  return like.scalar_type() == at::kDouble
             ? run_pairs<double>(step_values, slope_values, steps, products, like)
             : run_pairs<float>(step_values, slope_values, steps, products, like);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("spectral_normal(Tensor x, Tensor scale) -> Tensor");
  m.def("spectral_pairs(Tensor step, Tensor slope, int steps, Tensor?[] products) -> Tensor");
}

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) {
  m.impl("spectral_normal", &normal);
  m.impl("spectral_pairs", &pairs);
}

}  // namespace pb
