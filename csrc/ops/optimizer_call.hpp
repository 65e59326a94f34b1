// From the tensors of a call of the optimizer's operators to its kernels, on a CPU or on CUDA.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/optimizer.hpp"
#include "driver/any_optimizer.hpp"
#include "ops/optimizer_cuda.hpp"
#include "ops/torch_threads.hpp"

namespace pb {

using OptimizerSettings = c10::List<std::optional<at::Tensor>>;

// The kernels of the instruction set in use.
inline const OptimizerKernels& optimizer_kernels() { return PB_TABLE_IN_USE(optimizer_kernels); }

// The params of one step of parameters like `like`; `values` are what they point to.
template <class T>
OptimizerParams<T> optimizer_params(const OptimizerSettings& settings, std::string_view optimizer,
                                    Index flags, Index start, const at::Tensor& like,
                                    std::array<at::Tensor, kMaxSettings>& values) {
  const auto row = parse<InnerOptimizer>("optimizer", optimizer, kOptimizers);
  TORCH_CHECK_VALUE(settings.size() == kMaxSettings, "pybilevel: settings must have ", kMaxSettings,
                    " entries");
  OptimizerParams<T> params;
  params.row = static_cast<int>(row);
  params.flags = static_cast<unsigned>(flags);
  params.start = start;
  unsigned present = 0;
  for (int i = 0; i < kMaxSettings; ++i) {
    const std::optional<at::Tensor> setting = settings.get(i);
    TORCH_CHECK_VALUE(setting || i >= info(row).required, "pybilevel: ", optimizer, " needs the setting ",
                      info(row).settings[i]);
    if (!setting) continue;
    TORCH_CHECK_VALUE(setting->numel() == 1, "pybilevel: ", info(row).settings[i],
                      " must have one value, got ", setting->sizes());
    values[i] = setting->to(like.options());  // on CUDA it is never read on the host, which would wait
    params.settings[i].value = {values[i].template const_data_ptr<T>(), 0, 0};
    present |= 1u << i;
  }
  params.buffers = count_buffers(info(row), present, params.flags);
  return params;
}

// The contiguous tensors of a list, each of the size of its leaf: `each` of them a leaf.
inline std::vector<at::Tensor> optimizer_parts(const char* name, at::TensorList list, at::TensorList w,
                                               Index each) {
  TORCH_CHECK_VALUE(static_cast<Index>(list.size()) == each * static_cast<Index>(w.size()),
                    "pybilevel: ", name, " must have ", each, " for each of ", w.size(), " parameters, got ",
                    list.size());
  std::vector<at::Tensor> found;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const at::Tensor &part = list[i], &like = w[i / each];
    TORCH_CHECK_VALUE(part.sizes() == like.sizes() && part.scalar_type() == w[0].scalar_type() &&
                          part.device() == w[0].device(),
                      "pybilevel: ", name, "[", i, "] must be ", like.sizes(), " of ", w[0].scalar_type(),
                      " on ", w[0].device(), ", got ", part.sizes(), " of ", part.scalar_type(), " on ",
                      part.device());
    found.push_back(part.contiguous());
  }
  return found;
}

inline std::vector<at::Tensor> empty_parts(at::TensorList w, Index each) {
  std::vector<at::Tensor> found;
  for (const at::Tensor& like : w) {
    for (Index k = 0; k < each; ++k) found.push_back(at::empty(like.sizes(), like.options()));
  }
  return found;
}

// Points part 0 of every leaf to w, and the others to its buffers.
template <class T, class F>
void point(std::vector<OptimizerLeaf<T>>& leaves, const std::vector<at::Tensor>& w,
           const std::vector<at::Tensor>& buffers, F&& place) {
  const std::size_t each = leaves.empty() ? 0 : buffers.size() / leaves.size();
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    place(leaves[i], 0, w[i].data_ptr<T>());
    for (std::size_t k = 0; k < each; ++k) place(leaves[i], 1 + k, buffers[i * each + k].data_ptr<T>());
  }
}

// What both operators take.
template <class T>
class OptimizerStep {
 public:
  std::array<at::Tensor, kMaxSettings> values;
  OptimizerParams<T> params;
  at::Tensor count;  // on CUDA; elsewhere it is in params.start
  std::vector<at::Tensor> w, g, buffers;
  std::vector<OptimizerLeaf<T>> leaves;

  OptimizerStep(at::TensorList w_list, at::TensorList g_list, at::TensorList buffer_list,
                const OptimizerSettings& settings, std::string_view optimizer, Index flags, Index start,
                const std::optional<at::Tensor>& made)
      : params(optimizer_params<T>(settings, optimizer, flags, start, w_list[0], values)),
        w(optimizer_parts("w", w_list, w_list, 1)),
        g(optimizer_parts("g", g_list, w_list, 1)),
        buffers(optimizer_parts("buffers", buffer_list, w_list, params.buffers)),
        leaves(w.size()) {
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      leaves[i].size = w[i].numel();
      leaves[i].g = g[i].template const_data_ptr<T>();
    }
    point(leaves, w, buffers, [](OptimizerLeaf<T>& leaf, std::size_t k, T* p) { leaf.state[k] = p; });
    if (!made) return;
    TORCH_CHECK_VALUE(made->numel() == 1, "pybilevel: count must have one value, got ", made->sizes());
    if (w[0].is_cuda()) {
      count = made->to(w[0].options().dtype(at::kFloat));
    } else {
      params.start += static_cast<Index>(made->template item<double>());
    }
  }

  const float* count_on_device() const { return count.defined() ? count.const_data_ptr<float>() : nullptr; }

  void run() const {
#if PB_WITH_TORCH_CUDA
    if (w[0].is_cuda()) return step_cuda(params, leaves, count_on_device(), w[0]);
#endif
    check_cpu();
    optimizer_kernels().in<T>().step(params, leaves.data(), static_cast<Index>(leaves.size()),
                                     {run_on_torch_threads});
  }

  // The cotangents of the settings go to `to` [kMaxSettings], where w is.
  void run_pullback(T* to) const {
#if PB_WITH_TORCH_CUDA
    if (w[0].is_cuda()) return pullback_cuda(params, leaves, count_on_device(), w[0], to);
#endif
    check_cpu();
    double bars[kMaxSettings];
    optimizer_kernels().in<T>().pullback(params, leaves.data(), static_cast<Index>(leaves.size()), bars,
                                         {run_on_torch_threads});
    std::copy(std::begin(bars), std::end(bars), to);
  }

 private:
  void check_cpu() const {
    TORCH_CHECK(w[0].is_cpu(), "pybilevel: this build has no kernels for ", w[0].device());
  }
};

}  // namespace pb
