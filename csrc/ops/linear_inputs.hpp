// The arguments of the linear operators, and their checks.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "cpu/linear.hpp"
#include "driver/any_optimizer.hpp"

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
      Index buffers, Index start, Index steps, const at::Tensor &plan, Index slots, Index reversed,        \
      bool keep
#define PB_LINEAR_NAMES                                                                                \
  x, y, weights, l2, w0, buffers0, {&setting0, &setting1, &setting2, &setting3, &setting4}, query_x,   \
      query_y, query_weights, loss, coordinates, regime, optimizer, classes, bias, scale, query_scale, \
      flags, buffers, start, steps, plan, slots, reversed, keep

// clang-format off
#define PB_LINEAR_SCHEMA                                                                               \
  "Tensor x, Tensor y, Tensor? weights, Tensor l2, Tensor? w0, Tensor? buffers0, "                     \
  "Tensor? setting0, Tensor? setting1, Tensor? setting2, Tensor? setting3, Tensor? setting4, "         \
  "Tensor? query_x, Tensor? query_y, Tensor? query_weights, "                                          \
  "str loss, str coordinates, str regime, str optimizer, "                                             \
  "int classes, bool bias, float scale, float query_scale, int flags, int buffers, int start, "        \
  "int steps, Tensor plan, int slots, int reversed, bool keep"
#define PB_LINEAR_RESULTS "(Tensor w, Tensor buffers, Tensor outer, Tensor logits, Tensor trajectory, Tensor status)"
#define PB_LINEAR_BARS                                                                                 \
  "Tensor? w_bar, Tensor? buffers_bar, Tensor? outer_bar, Tensor? logits_bar, "                        \
  "Tensor w, Tensor logits, Tensor(a!) trajectory, bool[] needs, "
#define PB_LINEAR_COTANGENTS                                                                           \
  "(Tensor x, Tensor y, Tensor weights, Tensor l2, Tensor w0, Tensor buffers0, "                       \
  "Tensor setting0, Tensor setting1, Tensor setting2, Tensor setting3, Tensor setting4, "              \
  "Tensor query_x, Tensor query_y, Tensor query_weights)"
// clang-format on

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
  const at::Tensor& plan;  // ops, int32, on the CPU
  Index slots;
  Index reversed;  // how many of the last steps the plan reverses; 0: there is no way back
  bool keep;
  // A perceptron's: its widths and activation. Its parameters are [B, 1, P] where those of a linear model are [B, D, c];
  // w0 may be [1, 1, P], of all tasks together, and its cotangent is then the sum of theirs.
  at::IntArrayRef sizes = {};
  std::string_view activation = {};
  std::string_view precision = kPrecisions[0];

  bool shares_w0() const { return !sizes.empty() && w0 && w0->dim() == 3 && w0->size(0) == 1; }
  Precision parsed_precision() const { return parse<Precision>("precision", precision, kPrecisions); }
  bool truncated() const { return reversed > 0 && reversed < steps; }
  void check() const;  // shapes, dtypes and names
  void check_optimizer() const;

  // The shape of the parameters of one task.
  std::array<Index, 2> model() const {
    if (sizes.empty()) return {x.size(2) + bias, classes};
    Index scalars = 0;
    for (std::size_t l = 1; l < sizes.size(); ++l) scalars += (sizes[l - 1] + 1) * sizes[l];
    return {1, scalars};
  }

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
    TORCH_CHECK_VALUE(!name.empty(), "pybilevel: ", optimizer, " has no setting ", i);
    detail::check_like(name.c_str(), *settings[i], x, {tasks, steps});
    present |= 1u << i;
  }
  const Index expected = count_buffers(row, present, static_cast<unsigned>(flags));
  TORCH_CHECK_VALUE(buffers == expected, "pybilevel: ", optimizer, " keeps ", expected,
                    " buffers with these settings, got ", buffers);
  TORCH_CHECK_VALUE(start >= 0, "pybilevel: start must be >= 0, got ", start);
  const auto [model_rows, model_columns] = model();
  detail::check_like("buffers0", buffers0, x, {buffers, tasks, model_rows, model_columns});
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
  TORCH_CHECK_VALUE(steps >= 0 && slots >= 0 && reversed >= 0 && reversed <= steps && classes >= 1,
                    "pybilevel: steps, slots, reversed or classes out of range");
  TORCH_CHECK_VALUE(fit(variant().loss, variant().coordinates), "pybilevel: ", coordinates,
                    " coordinates are not for the loss ", loss);
  TORCH_CHECK_VALUE(variant().coordinates != Coordinates::kDual || (!buffers0 && !truncated()),
                    "pybilevel: dual coordinates take no initial velocity and no truncation");
  TORCH_CHECK_VALUE(parsed_precision() == Precision::kFp32 || (x.is_cuda() && x.scalar_type() == at::kFloat),
                    "pybilevel: precision is '", precision, "', which needs float32 on CUDA; x is ",
                    x.scalar_type(), " on ", x.device(), ". Use precision 'fp32'");
  const Index tasks = x.size(0), rows = x.size(1);
  const auto [model_rows, model_columns] = model();
  detail::check_targets("y", y, x, classes);
  detail::check_like("weights", weights, x, {tasks, rows});
  detail::check_like("l2", l2, x, {tasks});
  detail::check_like("w0", w0, x, {shares_w0() ? 1 : tasks, model_rows, model_columns});
  check_optimizer();
  TORCH_CHECK_VALUE(query_x.has_value() == query_y.has_value(), "pybilevel: query_x and query_y go together");
  if (!query_x) return;
  detail::check_like("query_x", query_x, x, {tasks, query_x->size(1), x.size(2)});
  detail::check_targets("query_y", *query_y, *query_x, classes);
  detail::check_like("query_weights", query_weights, x, {tasks, query_x->size(1)});
}

inline void LinearCotangents::check(const LinearInputs& in) const {
  const Index tasks = in.x.size(0);
  const auto [rows, columns] = in.model();
  detail::check_like("w_bar", w, in.x, {tasks, rows, columns});
  detail::check_like("buffers_bar", buffers, in.x, {in.buffers, tasks, rows, columns});
  detail::check_like("outer_bar", loss, in.x, {in.query_x ? tasks : 0});
  detail::check_like("logits_bar", logits, in.x, {tasks, in.query_x ? in.query_x->size(1) : 0, in.classes});
}

}  // namespace pb
