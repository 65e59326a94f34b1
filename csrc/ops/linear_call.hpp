// From the tensors of one operator call to the plain params of the kernels.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstdlib>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "core/placed_plan.hpp"
#include "cpu/linear.hpp"
#include "driver/any_optimizer.hpp"
#include "ops/recycled.hpp"

namespace pb {

// The arguments of both operators, in the order of the schema. B tasks, n rows, d features, c classes, T steps.
#define PB_LINEAR_ARGUMENTS                                                                                \
  const at::Tensor &x, const at::Tensor &y, const std::optional<at::Tensor>&weights, const at::Tensor &l2, \
      const std::optional<at::Tensor>&w0, const std::optional<at::Tensor>&buffers0,                        \
      const std::optional<at::Tensor>&setting0, const std::optional<at::Tensor>&setting1,                  \
      const std::optional<at::Tensor>&setting2, const std::optional<at::Tensor>&setting3,                  \
      const std::optional<at::Tensor>&setting4, const std::optional<at::Tensor>&query_x,                   \
      const std::optional<at::Tensor>&query_y, const std::optional<at::Tensor>&query_weights,              \
      std::string_view loss, std::string_view coordinates, std::string_view regime,                        \
      std::string_view optimizer, Index classes, bool bias, double scale, double query_scale, Index flags, \
      Index buffers, Index start, Index steps, at::IntArrayRef plan, Index slots, bool truncated, bool keep
#define PB_LINEAR_NAMES                                                                                \
  x, y, weights, l2, w0, buffers0, {&setting0, &setting1, &setting2, &setting3, &setting4}, query_x,   \
      query_y, query_weights, loss, coordinates, regime, optimizer, classes, bias, scale, query_scale, \
      flags, buffers, start, steps, plan, slots, truncated, keep

struct LinearInputs {
  using Optional = const std::optional<at::Tensor>&;
  const at::Tensor& x;                                                  // [B, n, d]
  const at::Tensor& y;                                                  // [B, n] int64, or [B, n, c]
  Optional weights;                                                     // [B, n]
  const at::Tensor& l2;                                                 // [B]
  Optional w0;                                                          // [B, D, c], D = d + bias
  Optional buffers0;                                                    // [K, B, D, c]
  std::array<const std::optional<at::Tensor>*, kMaxSettings> settings;  // [B, T], in OptimizerInfo's order
  Optional query_x;                                                     // [B, m, d]
  Optional query_y;                                                     // [B, m] int64, or [B, m, c]
  Optional query_weights;                                               // [B, m]
  std::string_view loss, coordinates, regime, optimizer;  // as in registry.def, but for the regime
  Index classes;
  bool bias;
  double scale, query_scale;
  Index flags, buffers, start;  // see OptimizerParams
  Index steps;
  at::IntArrayRef plan;
  Index slots;
  bool truncated, keep;

  void check() const;  // shapes, dtypes and names
  void check_optimizer() const;

  LinearVariant variant() const {
    return {parse<LinearLoss>("loss", loss, kLosses),
            parse<Coordinates>("coordinates", coordinates, kCoordinates),
            parse<InnerOptimizer>("optimizer", optimizer, kOptimizers)};
  }

  Regime parsed_regime() const { return parse<Regime>("regime", regime, kRegimes); }
};

struct LinearCotangents {
  const std::optional<at::Tensor>&w, &buffers, &loss, &logits;

  void check(const LinearInputs& in) const;
};

namespace detail {

inline void check_shape(const char* name, const at::Tensor& t, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.sizes() == shape, "pybilevel: ", name, " must be ", shape, ", got ", t.sizes());
}

inline void check_like(const char* name, const std::optional<at::Tensor>& t, const at::Tensor& x,
                       at::IntArrayRef shape) {
  if (!t) return;
  check_shape(name, *t, shape);
  TORCH_CHECK_TYPE(t->scalar_type() == x.scalar_type(), "pybilevel: ", name, " is ", t->scalar_type(),
                   " but x is ", x.scalar_type());
  TORCH_CHECK_VALUE(t->device() == x.device(), "pybilevel: ", name, " is on ", t->device(), " but x is on ",
                    x.device());
}

inline void check_targets(const char* name, const at::Tensor& y, const at::Tensor& x, Index classes) {
  if (y.scalar_type() == at::kLong) {
    check_shape(name, y, {x.size(0), x.size(1)});
  } else {
    check_like(name, y, x, {x.size(0), x.size(1), classes});
  }
}

}  // namespace detail

inline void LinearInputs::check_optimizer() const {
  const Index tasks = x.size(0);
  const OptimizerInfo& row = info(variant().optimizer);
  unsigned present = 0;
  for (int i = 0; i < kMaxSettings; ++i) {
    const std::string name(row.settings[i]);
    TORCH_CHECK_VALUE(*settings[i] || i >= row.required, "pybilevel: ", optimizer, " needs the setting ",
                      name);
    if (!*settings[i]) continue;
    TORCH_CHECK_VALUE(!name.empty(), "pybilevel: ", optimizer, " has no setting", i);
    detail::check_like(name.c_str(), *settings[i], x, {tasks, steps});
    present |= 1u << i;
  }
  const Index expected = count_buffers(row, present, static_cast<unsigned>(flags));
  TORCH_CHECK_VALUE(buffers == expected, "pybilevel: ", optimizer, " keeps ", expected,
                    " buffers with these settings, got ", buffers);
  detail::check_like("buffers0", buffers0, x, {buffers, tasks, x.size(2) + bias, classes});
  TORCH_CHECK_VALUE(row.linear || variant().coordinates == Coordinates::kPrimal, "pybilevel: ", coordinates,
                    " coordinates are not for the optimizer ", optimizer, ", whose step is not linear");
}

inline void LinearInputs::check() const {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "pybilevel: x is ",
                   x.scalar_type(), "; fused operators take float32 or float64");
  TORCH_CHECK_VALUE(x.dim() == 3, "pybilevel: x must be [B, n, d], got ", x.sizes());
  TORCH_CHECK_VALUE(
      parsed_regime() != Regime::kLanes || (variant().coordinates == Coordinates::kDual && x.is_cpu()),
      "pybilevel: the regime 'lanes' needs dual coordinates and a CPU");
  TORCH_CHECK_VALUE(steps >= 0 && slots >= 0 && classes >= 1,
                    "pybilevel: steps, slots or classes out of range");
  TORCH_CHECK_VALUE(fit(variant().loss, variant().coordinates), "pybilevel: ", coordinates,
                    " coordinates are not for the loss ", loss);
  TORCH_CHECK_VALUE(variant().coordinates != Coordinates::kDual || (!buffers0 && !truncated),
                    "pybilevel: dual coordinates take no initial velocity and no truncation");
  const Index tasks = x.size(0), rows = x.size(1), model_rows = x.size(2) + bias;
  detail::check_targets("y", y, x, classes);
  detail::check_like("weights", weights, x, {tasks, rows});
  detail::check_like("l2", l2, x, {tasks});
  detail::check_like("w0", w0, x, {tasks, model_rows, classes});
  check_optimizer();
  TORCH_CHECK_VALUE(query_x.has_value() == query_y.has_value(), "pybilevel: query_x and query_y go together");
  if (!query_x) return;
  detail::check_like("query_x", query_x, x, {tasks, query_x->size(1), x.size(2)});
  detail::check_targets("query_y", *query_y, *query_x, classes);
  detail::check_like("query_weights", query_weights, x, {tasks, query_x->size(1)});
}

// What a present tensor without elements points to, since null means absent; never read or written.
template <class T>
inline T nowhere{};

inline void LinearCotangents::check(const LinearInputs& in) const {
  const Index tasks = in.x.size(0), rows = in.x.size(2) + in.bias;
  detail::check_like("w_bar", w, in.x, {tasks, rows, in.classes});
  detail::check_like("buffers_bar", buffers, in.x, {in.buffers, tasks, rows, in.classes});
  detail::check_like("outer_bar", loss, in.x, {in.query_x ? tasks : 0});
  detail::check_like("logits_bar", logits, in.x, {tasks, in.query_x ? in.query_x->size(1) : 0, in.classes});
}

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
    params.truncated = in.truncated;
    params.keep = in.keep;
    params.l2 = rows_of<const T>(in.l2);
    if (in.w0) params.w0 = rows_of<const T>(keep(*in.w0));
    if (in.buffers0) params.buffers0 = batches_of<const T>(keep(*in.buffers0));
    set_optimizer(in);
    set_data(params.support, in.x, in.y, in.weights, in.scale);
    if (in.query_x) set_data(params.query, *in.query_x, *in.query_y, in.query_weights, in.query_scale);
    const Ops ops(in.plan.begin(), in.plan.end());
    plan_ = place(ops.data(), ops.size(), in.steps, in.slots);
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
    const at::Tensor one = weights ? *weights : at::ones({1, 1}, x.options()).expand({x.size(0), x.size(1)});
    data.weights = rows_of<const T>(keep(one));
    data.scale = T(scale);
  }

  std::deque<at::Tensor> kept_;
  PlacedPlan plan_;
};

// How many leading arguments of the schema are tensors, and may have cotangents.
inline constexpr std::size_t kTensors = 9 + kMaxSettings, kBuffers0 = 5, kSetting0 = 6;

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

// The cotangents that were asked for; the others stay empty.
class LinearGradients {
 public:
  using Tuple =
      std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                 at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  static_assert(std::tuple_size_v<Tuple> == kTensors);

  LinearGradients(const LinearInputs& in, const c10::List<bool>& needs) {
    TORCH_CHECK_VALUE(needs.size() == kTensors, "pybilevel: needs must have ", kTensors, " entries");
    const auto& s = in.settings;
    const std::array<std::optional<at::Tensor>, kTensors> inputs{
        in.x,  in.y,  in.weights, in.l2, in.w0,      in.buffers0, *s[0],
        *s[1], *s[2], *s[3],      *s[4], in.query_x, in.query_y,  in.query_weights};
    for (std::size_t i = 0; i < kTensors; ++i) {
      wanted_[i] = needs[i] && inputs[i] && inputs[i]->is_floating_point();
      const auto options = in.x.options();
      // Settings are written step by step, and a truncated plan leaves some steps at zero.
      const bool setting = i >= kSetting0 && i < kSetting0 + kMaxSettings;
      grads_[i] = !wanted_[i] ? at::empty({0}, options)
                  : setting   ? at::zeros(inputs[i]->sizes(), options)
                              : empty_recycled(inputs[i]->sizes(), options);
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

  Tuple tuple() const {
    return std::apply([](const auto&... t) { return Tuple(t...); }, grads_);
  }

 private:
  std::array<bool, kTensors> wanted_{};
  std::array<at::Tensor, kTensors> grads_;
};

}  // namespace pb
