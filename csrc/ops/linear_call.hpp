// From the tensors of one operator call to the plain params of the kernels.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "ops/linear_inputs.hpp"
#include "ops/plan_tensor.hpp"
#include "ops/recycled.hpp"
#include "ops/sum_tasks.hpp"

namespace pb {

// What a present tensor without elements points to, since null means absent; never read or written.
template <class T>
inline T nowhere{};

// [B, rows, columns] with contiguous columns, or [B, rows] with a stride, as kernels see it.
template <class T>
Batch<T> rows_of(const at::Tensor& t) {
  using Scalar = std::remove_const_t<T>;
  const Index task = t.stride(0), row = t.dim() > 1 ? t.stride(1) : 0;
  if (t.numel() == 0) return {&nowhere<Scalar>, task, row};
  if constexpr (std::is_const_v<T>) {
    return {t.const_data_ptr<Scalar>(), task, row};
  } else {
    return {t.mutable_data_ptr<Scalar>(), task, row};
  }
}

// [K, B, rows, columns] with contiguous columns, as kernels see it.
template <class T>
Batches<T> batches_of(const at::Tensor& t) {
  if (t.size(0) == 0) return {rows_of<T>(t), 0};
  return {rows_of<T>(t[0]), t.stride(0)};
}

// The params of one call, and the tensors that they point into.
template <class T>
class LinearCall {
 public:
  LinearParams<T> params;
  LinearVariant variant;
  Regime regime;

  explicit LinearCall(const LinearInputs& in) : variant(in.variant()), regime(in.parsed_regime()) {
    params.tasks = in.x.size(0);
    params.features = in.x.size(2);
    params.classes = in.classes;
    params.steps = in.steps;
    params.bias = in.bias;
    params.truncated = in.truncated();
    params.keep = in.keep;
    params.precision = in.parsed_precision();
    params.l2 = rows_of<const T>(in.l2);
    if (in.w0) params.w0 = rows_of<const T>(keep(*in.w0));
    if (in.shares_w0()) params.w0.task = 0;
    if (in.buffers0) params.buffers0 = batches_of<const T>(keep(*in.buffers0));
    set_optimizer(in);
    set_data(params.support, in.x, in.y, in.weights, in.scale);
    if (in.query_x) set_data(params.query, *in.query_x, *in.query_y, in.query_weights, in.query_scale);
    plan_ = placed(in.plan, in.steps, in.slots);
    params.plan = plan_.ops.data();
    params.plan_length = plan_.ops.size();
    params.plan_split = plan_.split;
    params.slots = in.slots;
    params.poison = std::getenv("PYBILEVEL_POISON") != nullptr;
  }

  LinearCall(const LinearCall&) = delete;

  // The tensor with contiguous rows, alive as long as this.
  const at::Tensor& keep(const at::Tensor& t) {
    const bool rows = t.dim() < 3 || t.stride(-1) == 1 || t.size(-1) == 1;
    return kept_.emplace_back(rows ? t : t.contiguous());
  }

 private:
  void set_optimizer(const LinearInputs& in) {
    params.optimizer.row = static_cast<int>(variant.optimizer);
    params.optimizer.flags = static_cast<unsigned>(in.flags);
    params.optimizer.buffers = in.buffers;
    params.optimizer.start = in.start;
    for (int i = 0; i < kMaxSettings; ++i) {
      if (*in.settings[i]) params.optimizer.settings[i].value = rows_of<const T>(**in.settings[i]);
    }
  }

  void set_data(LinearData<T>& data, const at::Tensor& x, const at::Tensor& y,
                const std::optional<at::Tensor>& weights, double scale) {
    data.rows = x.size(1);
    data.x = rows_of<const T>(keep(x));
    if (y.scalar_type() == at::kLong) {
      data.labels = rows_of<const std::int64_t>(y);
    } else {
      data.targets = rows_of<const T>(keep(y));
    }
    data.weights = weights ? rows_of<const T>(keep(*weights)) : Batch<const T>{one_at(x), 0, 0};
    data.scale = T(scale);
  }

  // A one where x is.
  const T* one_at(const at::Tensor& x) {
    static constexpr T kOne = 1;
    return x.is_cpu() ? &kOne : keep(at::ones({1}, x.options())).template const_data_ptr<T>();
  }

  c10::SmallVector<at::Tensor, 16> kept_;
  PlacedPlan plan_;
};

// How many leading arguments of the schema are tensors, and may have cotangents.
inline constexpr std::size_t kTensors = 9 + kMaxSettings, kLabels = 1, kL2 = 3, kW0 = 4, kBuffers0 = 5,
                             kSetting0 = 6, kQuery = kSetting0 + kMaxSettings;

// Where the cotangents go, in the order of the schema's tensors.
template <class T>
std::array<Batch<T>*, kTensors> cotangents(LinearParams<T>& p) {
  Setting<T>(&s)[kMaxSettings] = p.optimizer.settings;
  return {&p.support.x_bar,
          &p.support.targets_bar,
          &p.support.weights_bar,
          &p.l2_bar,
          &p.w0_bar,
          &p.buffers0_bar.first,
          &s[0].bar,
          &s[1].bar,
          &s[2].bar,
          &s[3].bar,
          &s[4].bar,
          &p.query.x_bar,
          &p.query.targets_bar,
          &p.query.weights_bar};
}

// The cotangents that were asked for; the others stay undefined.
class LinearGradients {
 public:
  using Array = std::array<at::Tensor, kTensors>;
  using Needs = std::array<bool, kTensors>;
  using Tuple =
      std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                 at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  static_assert(std::tuple_size_v<Tuple> == kTensors);

  LinearGradients(const LinearInputs& in, const Needs& needs) {
    const auto& s = in.settings;
    const std::array<std::optional<at::Tensor>, kTensors> inputs{
        in.x,  in.y,  in.weights, in.l2, in.w0,      in.buffers0, *s[0],
        *s[1], *s[2], *s[3],      *s[4], in.query_x, in.query_y,  in.query_weights};
    const auto options = in.x.options();
    for (std::size_t i = 0; i < kTensors; ++i) {
      wanted_[i] = needs[i] && inputs[i] && inputs[i]->is_floating_point();
      // Settings are written step by step, of which a truncated plan leaves some out.
      const bool some_steps = in.truncated() && i >= kSetting0 && i < kSetting0 + kMaxSettings;
      if (!wanted_[i]) continue;
      grads_[i] =
          some_steps ? at::zeros(inputs[i]->sizes(), options) : empty_recycled(inputs[i]->sizes(), options);
    }
    if (in.shares_w0() && wanted_[kW0]) {
      shared_ = grads_[kW0];
      grads_[kW0] = empty_recycled({in.x.size(0), in.w0->size(1), in.w0->size(2)}, in.x.options());
    }
  }

  template <class T>
  void bind(LinearParams<T>& p) {
    const auto targets = cotangents(p);
    for (std::size_t i = 0; i < kTensors; ++i) {
      if (wanted_[i] && i != kBuffers0) *targets[i] = rows_of<T>(grads_[i]);
    }
    if (wanted_[kBuffers0]) p.buffers0_bar = batches_of<T>(grads_[kBuffers0]);
  }

  // After the reverse half.
  Array found() && {
    if (shared_.defined()) {
      sum_tasks(grads_[kW0], shared_);
      grads_[kW0] = shared_;
    }
    return std::move(grads_);
  }

 private:
  std::array<bool, kTensors> wanted_{};
  Array grads_;
  at::Tensor shared_;  // the cotangent of a w0 of all tasks; defined: grads_ has theirs
};

}  // namespace pb
