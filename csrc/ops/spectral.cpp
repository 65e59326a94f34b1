// The torch operators of the spectral method, on a CPU. No autograd, no fake implementation: its node calls them.
//
//   pybilevel::spectral_normal   X^T S X
//   pybilevel::spectral_power    T steps, at every eigenvalue
//   pybilevel::spectral_edges    its divided differences with the last eigenvalue
//   pybilevel::spectral_pairs    products, weighted by its divided differences at all pairs
//
// pybilevel/ops/spectral.py documents the arguments.
#include "cpu/spectral.hpp"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "cpu/dispatch.hpp"
#include "ops/torch_threads.hpp"

namespace pb {
namespace {

using at::Tensor;

const SpectralKernels& spectral_kernels() { return PB_TABLE_IN_USE(spectral_kernels); }

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

// The settings of a call, as tensors that the params point to.
class Steps {
 public:
  StepsParams params;

  Steps(const Tensor& values, const Tensor& lr, const std::optional<Tensor>& momentum, const Tensor& decay,
        bool nesterov, Index steps)
      : like_(values) {
    TORCH_CHECK_VALUE(values.dim() >= 1, "pybilevel: values must be [*B, r], got ", values.sizes());
    TORCH_CHECK_VALUE(steps >= 1, "pybilevel: steps must be at least 1, got ", steps);
    params.tasks = tasks_of(values, 1);
    params.width = values.size(-1);
    params.steps = steps;
    params.nesterov = nesterov;
    params.values = hold(values, params.width, "values");
    params.lr = hold(lr, 1, "lr");
    params.decay = hold(decay, 1, "decay");
    if (!momentum) return;
    params.momentum = hold(*momentum, 1, "momentum");
    params.states = 2;
  }

  // [entries, *B, r]
  Tensor run(void (*kernel)(const StepsParams&, double*, const Parallel&)) const {
    std::vector<Index> shape = like_.sizes().vec();
    shape.insert(shape.begin(), params.entries());
    const Tensor found = at::empty(shape, like_.options());
    kernel(params, found.mutable_data_ptr<double>(), {run_on_torch_threads});
    return found;
  }

 private:
  // Where its numbers lie one after the other, `each` of them a task.
  const double* hold(const Tensor& given, Index each, const char* name) {
    TORCH_CHECK_TYPE(given.scalar_type() == at::kDouble, "pybilevel: ", name, " must be float64, got ",
                     given.scalar_type());
    TORCH_CHECK_VALUE(given.numel() == params.tasks * each, "pybilevel: ", name, " must have ", each,
                      " numbers for each of ", params.tasks, " tasks, got ", given.sizes());
    held_.push_back(given.contiguous());
    return held_.back().const_data_ptr<double>();
  }

  Tensor like_;
  std::vector<Tensor> held_;
};

Tensor power(const Tensor& values, const Tensor& lr, const std::optional<Tensor>& momentum,
             const Tensor& decay, bool nesterov, Index steps) {
  return Steps(values, lr, momentum, decay, nesterov, steps).run(spectral_kernels().power);
}

Tensor edges(const Tensor& values, const Tensor& lr, const std::optional<Tensor>& momentum,
             const Tensor& decay, bool nesterov, Index steps) {
  return Steps(values, lr, momentum, decay, nesterov, steps).run(spectral_kernels().edges);
}

template <class T>
Tensor run_pairs(const Steps& steps, const std::vector<Tensor>& products, const Tensor& like) {
  PairsParams<T> params{.steps = steps.params, .sum = nullptr};
  for (std::size_t e = 0; e < products.size(); ++e)
    params.products[e] = products[e].defined() ? products[e].template const_data_ptr<T>() : nullptr;
  const Tensor sum = at::empty(like.sizes(), like.options());
  params.sum = sum.mutable_data_ptr<T>();
  spectral_kernels().in<T>().pairs(params, {run_on_torch_threads});
  return sum;
}

Tensor pairs(const Tensor& values, const Tensor& lr, const std::optional<Tensor>& momentum,
             const Tensor& decay, bool nesterov, Index count, const c10::List<std::optional<Tensor>>& given) {
  const Steps steps(values, lr, momentum, decay, nesterov, count);
  const Index entries = steps.params.entries();
  TORCH_CHECK_VALUE(static_cast<Index>(given.size()) == entries, "pybilevel: products must be ", entries,
                    ", got ", given.size());
  std::vector<Index> shape = values.sizes().vec();
  shape.push_back(shape.back());
  std::vector<Tensor> products(entries);
  Tensor like;
  for (Index e = 0; e < entries; ++e) {
    const std::optional<Tensor> product = given.get(e);
    if (!product) continue;
    products[e] = product->contiguous();
    if (!like.defined()) like = products[e];
    TORCH_CHECK_VALUE(
        product->sizes() == at::IntArrayRef(shape) && product->scalar_type() == like.scalar_type(),
        "pybilevel: products must be ", at::IntArrayRef(shape), " and of one dtype, got ", product->sizes(),
        " of ", product->scalar_type());
  }
  TORCH_CHECK_VALUE(like.defined(), "pybilevel: no product is given");
  TORCH_CHECK_TYPE(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
                   "pybilevel: products must be float32 or float64, got ", like.scalar_type());
  return like.scalar_type() == at::kDouble ? run_pairs<double>(steps, products, like)
                                           : run_pairs<float>(steps, products, like);
}

}  // namespace

#define PB_STEPS "Tensor values, Tensor lr, Tensor? momentum, Tensor decay, bool nesterov, int steps"

TORCH_LIBRARY_FRAGMENT(pybilevel, m) {
  m.def("spectral_normal(Tensor x, Tensor scale) -> Tensor");
  m.def("spectral_power(" PB_STEPS ") -> Tensor");
  m.def("spectral_edges(" PB_STEPS ") -> Tensor");
  m.def("spectral_pairs(" PB_STEPS ", Tensor?[] products) -> Tensor");
}

TORCH_LIBRARY_IMPL(pybilevel, CPU, m) {
  m.impl("spectral_normal", &normal);
  m.impl("spectral_power", &power);
  m.impl("spectral_edges", &edges);
  m.impl("spectral_pairs", &pairs);
}

}  // namespace pb
