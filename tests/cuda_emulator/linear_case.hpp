// One small batch of linear problems, or of models of any size on the same data, with buffers of the exact size, for
// either of the two backends.
#pragma once

#include <cmath>
#include <deque>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

#include "core/placed_plan.hpp"
#include "driver/any_optimizer.hpp"
#include "driver/linear_variant.hpp"
#include "problems/linear_params.hpp"

struct Case {
  const char* name;
  pb::LinearLoss loss;
  pb::Coordinates coordinates;
  pb::Index tasks, rows, queries, features, classes, steps;
  pb::Index slots = -1;  // of Revolve; -1: store all
  // Of SGD but for weight decay; `velocity0`: the buffers of any optimizer start above zero.
  bool momentum = false, nesterov = false, decay = false, soft = false, w0 = false, velocity0 = false,
       bias = true;
  pb::InnerOptimizer optimizer = pb::InnerOptimizer::kSgd;
  pb::Index start = 0;

  pb::LinearVariant variant() const { return {loss, coordinates, optimizer}; }
};

/// The params of a case and everything that they point to. The same case and seed give the same inputs.
template <class T>
class BatchOf {
 public:
  using Index = pb::Index;
  pb::LinearParams<T> params;

  BatchOf(const Case& c, Index tape_size) : BatchOf(c, tape_size, c.features + c.bias, c.classes) {}

  BatchOf(const Case& c, Index tape_size, Index model_rows, Index model_columns)
      : case_(c), model_rows_(model_rows), model_columns_(model_columns) {
    params.tasks = c.tasks, params.features = c.features, params.classes = c.classes, params.steps = c.steps;
    params.bias = c.bias, params.poison = true;
    set_data(params.support, c.rows);
    if (c.queries > 0) set_data(params.query, c.queries);
    params.l2 = {inputs(1, 0.1), 0, 0};  // shared by all tasks
    params.l2_bar = {results(c.tasks), 1, 0};
    if (c.w0) params.w0 = model_inputs(), params.w0_bar = model_results();
    set_optimizer();
    if (c.velocity0) set_buffers(params.buffers0, params.buffers0_bar);
    set_plan();
    params.trajectory = results(c.tasks * tape_size);
    params.w = model_results();
    if (params.optimizer.buffers > 0)
      params.buffers = {{results(params.optimizer.buffers * buffer_size()), model_size(), model_columns_},
                        buffer_size()};
    if (c.queries > 0) params.loss = results(c.tasks);
    if (c.queries > 0)
      params.logits = {results(c.tasks * c.queries * c.classes), c.queries * c.classes, c.classes};
    status_.assign(static_cast<std::size_t>(c.tasks), -2);
    params.status = status_.data();
  }

  /// Cotangents of all results, and the results themselves where the reverse half reads them.
  void prepare_reverse() {
    params.w_bar = model_inputs();
    if (params.optimizer.buffers > 0)
      params.buffers_bar = {
          {inputs(params.optimizer.buffers * buffer_size(), 0.5), model_size(), model_columns_},
          buffer_size()};
    if (case_.queries > 0) params.loss_bar = inputs(case_.tasks, 1);
    if (case_.queries > 0)
      params.logits_bar = {inputs(params.logits.task * case_.tasks, 1), params.logits.task,
                           params.logits.row};
    params.w_final = {params.w.data, params.w.task, params.w.row};
    params.logits_final = {params.logits.data, params.logits.task, params.logits.row};
  }

  /// Every result, in one fixed order (the trajectory, whose layout is the backend's own, left out).
  std::vector<double> outcome() const {
    std::vector<double> all(status_.begin(), status_.end());
    for (const std::vector<T>& part : results_) {
      if (part.data() != params.trajectory) all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

 private:
  T* inputs(Index count, double scale) {
    std::normal_distribution<double> normal;
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) value = static_cast<T>(scale * normal(random_));
    return inputs_.emplace_back(std::move(values)).data();
  }

  T* positive_inputs(Index count, double scale) {
    T* const values = inputs(count, 1);
    for (Index i = 0; i < count; ++i)
      values[i] = static_cast<T>(scale * (0.5 + 0.5 / (1 + values[i] * values[i])));
    return values;
  }

  T* results(Index count) {
    return results_.emplace_back(static_cast<std::size_t>(count), std::numeric_limits<T>::quiet_NaN()).data();
  }

  Index model_size() const { return model_rows_ * model_columns_; }
  Index buffer_size() const { return case_.tasks * model_size(); }

  pb::Batch<const T> model_inputs() { return {inputs(buffer_size(), 0.5), model_size(), model_columns_}; }

  pb::Batch<T> model_results() { return {results(buffer_size()), model_size(), model_columns_}; }

  // Positive: some are sums of squares.
  void set_buffers(pb::Batches<const T>& values, pb::Batches<T>& bars) {
    const Index count = params.optimizer.buffers;
    values = {{positive_inputs(count * buffer_size(), 0.5), model_size(), model_columns_}, buffer_size()};
    bars = {{results(count * buffer_size()), model_size(), model_columns_}, buffer_size()};
  }

  // Every setting and flag that the optimizer has, but for those of SGD that the case leaves out.
  void set_optimizer() {
    const pb::OptimizerInfo& row = pb::info(case_.optimizer);
    const bool sgd = case_.optimizer == pb::InnerOptimizer::kSgd;
    pb::OptimizerParams<T>& p = params.optimizer;
    p.row = static_cast<int>(case_.optimizer), p.start = case_.start;
    p.flags = sgd ? case_.nesterov : 1u;
    unsigned present = 0;
    for (int i = 0; i < pb::kMaxSettings; ++i) {
      const std::string_view name = row.settings[i];
      const bool left_out =
          (name == "momentum" && sgd && !case_.momentum) || (name == "weight_decay" && !case_.decay);
      if (name.empty() || left_out) continue;
      p.settings[i] = setting(name == "lr" ? 0.3 : name == "weight_decay" || name == "eps" ? 0.1 : 0.8);
      present |= 1u << i;
    }
    p.buffers = pb::count_buffers(row, present, p.flags);
  }

  pb::Setting<T> setting(double scale) {
    const Index steps = case_.steps;
    return {{positive_inputs(case_.tasks * steps, scale), steps, 1},
            {results(case_.tasks * steps), steps, 1}};
  }

  void set_data(pb::LinearData<T>& data, Index rows) {
    const Index features = case_.features, classes = case_.classes, all = case_.tasks * rows;
    data.rows = rows;
    data.x = {inputs(all * features, 1), rows * features, features};
    data.x_bar = {results(all * features), rows * features, features};
    data.weights = {positive_inputs(all, 1), rows, 1};
    data.weights_bar = {results(all), rows, 1};
    data.scale = T(1) / static_cast<T>(rows);
    if (case_.soft || case_.loss == pb::LinearLoss::kSquared) {
      data.targets = {positive_inputs(all * classes, 0.7), rows * classes, classes};
      data.targets_bar = {results(all * classes), rows * classes, classes};
      return;
    }
    std::vector<std::int64_t> labels(static_cast<std::size_t>(all));
    for (auto& label : labels)
      label = static_cast<std::int64_t>(random_() % static_cast<unsigned long>(classes));
    data.labels = {labels_.emplace_back(std::move(labels)).data(), rows, 1};
  }

  void set_plan() {
    const Index steps = case_.steps;
    params.slots = case_.slots >= 0 ? case_.slots : steps > 1 ? steps - 1 : 0;
    const pb::Ops ops = case_.slots >= 0 ? pb::revolve(steps, case_.slots) : pb::store_all(steps);
    plan_ = pb::place(ops.data(), static_cast<Index>(ops.size()), params.steps, params.slots);
    params.plan = plan_.ops.data();
    params.plan_length = static_cast<Index>(plan_.ops.size());
    params.plan_split = plan_.split;
  }

  Case case_;
  Index model_rows_, model_columns_;
  std::mt19937_64 random_{7};
  std::deque<std::vector<T>> inputs_, results_;
  std::deque<std::vector<std::int64_t>> labels_;
  std::vector<int> status_;
  pb::PlacedPlan plan_;
};

using Batch = BatchOf<double>;
