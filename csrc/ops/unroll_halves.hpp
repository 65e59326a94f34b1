// Both halves of an operator, whatever kernels run them: allocation, checks, and where the results go.
//
//   Engine::run(call, in, reverse)          starts the kernels of a half on the tensors' device
//   Engine::trajectory_shape(call, in)      [B, tape]
//   Engine::scratch_bytes(call, in)         bytes of scratch of the larger half, all teams together
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "cpu/linear.hpp"
#include "ops/kernels.hpp"
#include "ops/linear_call.hpp"
#include "ops/recycled.hpp"

namespace pb {

// run with T = the scalar of the tensor
template <class F>
decltype(auto) with_scalar_of(const at::Tensor& x, F&& run) {
  return x.scalar_type() == at::kDouble ? run.template operator()<double>()
                                        : run.template operator()<float>();
}

template <class Engine, class T>
Forward forward(const LinearInputs& in) {
  const Index tasks = in.x.size(0), queries = in.query_x ? in.query_x->size(1) : 0;
  const auto [rows, columns] = in.model();
  const auto options = in.x.options();
  at::Tensor w = empty_recycled({tasks, rows, columns}, options);
  at::Tensor buffers = empty_recycled({in.buffers, tasks, rows, columns}, options);
  at::Tensor loss = at::empty({in.query_x ? tasks : 0}, options);
  at::Tensor logits = empty_recycled({tasks, queries, in.classes}, options);
  at::Tensor status = at::empty({tasks}, options.dtype(at::kInt));
  LinearCall<T> call(in);
  at::Tensor trajectory = empty_recycled(Engine::trajectory_shape(call, in), options);
  if (tasks == 0) return {w, buffers, loss, logits, trajectory, status};

  LinearParams<T>& p = call.params;
  p.trajectory = trajectory.template data_ptr<T>();
  p.w = rows_of<T>(w);
  if (in.buffers > 0) p.buffers = batches_of<T>(buffers);
  if (in.query_x) {
    p.loss = loss.template data_ptr<T>();
    p.logits = rows_of<T>(logits);
  }
  p.status = status.template data_ptr<int>();
  Engine::run(call, in, false);
  return {w, buffers, loss, logits, trajectory, status};
}

inline void check_results(const LinearInputs& in, const at::Tensor& w, const at::Tensor& logits) {
  const Index queries = in.query_x ? in.query_x->size(1) : 0;
  const auto [rows, columns] = in.model();
  detail::check_like("w", w, in.x, {in.x.size(0), rows, columns});
  detail::check_like("logits", logits, in.x, {in.x.size(0), queries, in.classes});
}

template <class Engine, class T>
void backward(const LinearInputs& in, const LinearCotangents& bars, const at::Tensor& w,
              const at::Tensor& logits, at::Tensor& trajectory, LinearGradients& grads) {
  LinearCall<T> call(in);
  detail::check_like("trajectory", trajectory, in.x, Engine::trajectory_shape(call, in));
  TORCH_CHECK_VALUE(trajectory.is_contiguous(), "pybilevel: trajectory must be contiguous");
  bars.check(in);
  check_results(in, w, logits);
  if (in.x.size(0) == 0) return;
  LinearParams<T>& p = call.params;
  p.trajectory = trajectory.template data_ptr<T>();
  p.w_final = rows_of<const T>(call.keep(w));
  p.logits_final = rows_of<const T>(call.keep(logits));
  if (bars.w) p.w_bar = rows_of<const T>(call.keep(*bars.w));
  if (bars.buffers && in.buffers > 0) p.buffers_bar = batches_of<const T>(call.keep(*bars.buffers));
  if (bars.loss && in.query_x) p.loss_bar = call.keep(bars.loss->contiguous()).template const_data_ptr<T>();
  if (bars.logits && in.query_x) p.logits_bar = rows_of<const T>(call.keep(*bars.logits));
  grads.bind(p);
  Engine::run(call, in, true);
}

// The three operators of an engine, on inputs that were checked.

template <class Engine>
Forward unroll(const LinearInputs& in) {
  return with_scalar_of(in.x, [&]<class T> { return forward<Engine, T>(in); });
}

template <class Engine>
LinearGradients::Array unroll_backward(const LinearInputs& in, const LinearCotangents& bars,
                                       const at::Tensor& w, const at::Tensor& logits, at::Tensor& trajectory,
                                       const LinearGradients::Needs& needs) {
  LinearGradients grads(in, needs);
  with_scalar_of(in.x, [&]<class T> { backward<Engine, T>(in, bars, w, logits, trajectory, grads); });
  return std::move(grads).found();
}

// Between what the operators take and return, and what their kernels do.

inline LinearGradients::Needs needs_of(const c10::List<bool>& needs) {
  TORCH_CHECK_VALUE(needs.size() == kTensors, "pybilevel: needs must have ", kTensors, " entries");
  LinearGradients::Needs found;
  for (std::size_t i = 0; i < kTensors; ++i) found[i] = needs[i];
  return found;
}

// Tensors without elements for those that nobody asked for: operators return no undefined ones.
inline LinearGradients::Tuple tuple_of(LinearGradients::Array gradients, const at::TensorOptions& options) {
  for (at::Tensor& gradient : gradients) {
    if (!gradient.defined()) gradient = at::empty({0}, options);
  }
  return std::apply([](auto&... t) { return LinearGradients::Tuple(std::move(t)...); }, gradients);
}

// Bytes of scratch of a call, all teams together, as if every cotangent were asked for.
template <class Engine>
Index scratch_bytes(const LinearInputs& in) {
  return with_scalar_of(in.x, [&]<class T> {
    LinearCall<T> call(in);
    for (Batch<T>* bar : cotangents(call.params)) bar->data = &nowhere<T>;  // wanted, wherever it would go
    return Engine::scratch_bytes(call, in);
  });
}

// The scratch of an engine's kernels on the CPU. `tape` and `scratch` are theirs for some params; `together` tasks
// share a team.
template <class Params, class Tape>
Index scratch_on_cpu(const Params& params, Regime regime, Index scalar_bytes, Index together, Index scratch,
                     Tape&& tape) {
  const Index tasks = params.tasks;
  const Index groups = ceil_div(tasks, together > 1 ? together : group_size(tasks));
  const Index teams = regime == Regime::kRows ? 1 : std::min<Index>(groups, at::get_num_threads());
  // What the outer objective leaves behind the states: a trajectory that can be reversed, less one that cannot.
  Params back = params, there = params;
  back.steps = 0;
  there.steps = 1;
  back.plan_split = back.plan_length = there.plan_split = there.plan_length = 0;
  return teams * scratch + round_up(tasks, together) * (tape(back) - tape(there)) * scalar_bytes;
}

}  // namespace pb
