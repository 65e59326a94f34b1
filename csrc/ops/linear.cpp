// The torch operators of the fused linear problems: checks, allocation, dispatch.
//
//   pybilevel::linear_unroll            the whole unroll and, where there is a query set, the outer objective
//   pybilevel::linear_unroll_backward   every cotangent, by the reverse half of the plan; may overwrite the trajectory
//
// pybilevel/ops/linear.py documents the arguments, and adds the fake and autograd registrations.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "cpu/dispatch.hpp"
#include "ops/linear_call.hpp"
#include "ops/linear_cuda.hpp"
#include "ops/recycled.hpp"

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile csrc/ops with -fopenmp: at::parallel_for is a header, and would run serially"
#endif

namespace pb {
namespace {

using at::Tensor;

void run_on_torch_threads(Index count, Parallel::Body body, void* context) {
  at::parallel_for(0, count, 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) body(context, i);
    finish_streams();
  });
}

template <class T>
void run(const LinearCall<T>& call, const Tensor& x, bool reverse) {
#if PB_WITH_TORCH_CUDA
  if (x.is_cuda()) return run_cuda(call.params, call.variant, call.regime == Regime::kRows, x, reverse);
#endif
  TORCH_CHECK(x.is_cpu(), "pybilevel: this build has no kernels for ", x.device());
  const LinearEntries<T>& kernels = cpu_kernels().in<T>();
  const Parallel parallel{run_on_torch_threads};
  (reverse ? kernels.reverse : kernels.forward)(call.params, call.variant, call.regime, parallel);
}

// [B, tape], B rounded up to the tasks whose numbers are interleaved.
template <class T>
std::array<Index, 2> trajectory_shape(const LinearCall<T>& call, [[maybe_unused]] const Tensor& x) {
  const Index tasks = call.params.tasks;
#if PB_WITH_TORCH_CUDA
  if (x.is_cuda()) return {tasks, tape_size_cuda(call.params, call.variant, x)};
#endif
  const LinearKernels& kernels = cpu_kernels();
  return {round_up(tasks, tasks_together(call.regime, kernels.pack_bytes, sizeof(T))),
          kernels.in<T>().tape_size(call.params, call.variant, call.regime)};
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward forward(const LinearInputs& in) {
  const Index tasks = in.x.size(0), model_rows = in.x.size(2) + in.bias,
              queries = in.query_x ? in.query_x->size(1) : 0;
  const auto options = in.x.options();
  Tensor w = empty_recycled({tasks, model_rows, in.classes}, options);
  Tensor buffers = empty_recycled({in.buffers, tasks, model_rows, in.classes}, options);
  Tensor loss = at::empty({in.query_x ? tasks : 0}, options);
  Tensor logits = empty_recycled({tasks, queries, in.classes}, options);
  Tensor status = at::empty({tasks}, options.dtype(at::kInt));
  LinearCall<T> call(in);
  Tensor trajectory = empty_recycled(trajectory_shape(call, in.x), options);
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
  run(call, in.x, false);
  return {w, buffers, loss, logits, trajectory, status};
}

void check_results(const LinearInputs& in, const Tensor& w, const Tensor& logits) {
  const Index queries = in.query_x ? in.query_x->size(1) : 0;
  detail::check_like("w", w, in.x, {in.x.size(0), in.x.size(2) + in.bias, in.classes});
  detail::check_like("logits", logits, in.x, {in.x.size(0), queries, in.classes});
}

template <class T>
void backward(const LinearInputs& in, const LinearCotangents& bars, const Tensor& w, const Tensor& logits,
              Tensor& trajectory, LinearGradients& grads) {
  LinearCall<T> call(in);
  detail::check_like("trajectory", trajectory, in.x, trajectory_shape(call, in.x));
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
  run(call, in.x, true);
}

template <class T>
Index scratch_bytes(const LinearInputs& in) {
  LinearCall<T> call(in);
  for (Batch<T>* bar : cotangents(call.params)) bar->data = &nowhere<T>;  // wanted, wherever it would go
#if PB_WITH_TORCH_CUDA
  if (in.x.is_cuda())
    return scratch_bytes_cuda(call.params, call.variant, call.regime == Regime::kRows, in.x);
#endif
  const LinearEntries<T>& kernels = cpu_kernels().in<T>();
  const Index together = tasks_together(call.regime, cpu_kernels().pack_bytes, sizeof(T));
  const Index groups = ceil_div(in.x.size(0), together > 1 ? together : group_size(in.x.size(0)));
  const Index teams = call.regime == Regime::kRows ? 1 : std::min<Index>(groups, at::get_num_threads());
  // What the outer objective leaves behind the states: a trajectory that can be reversed, less one that cannot.
  LinearParams<T> back = call.params, there = call.params;
  back.steps = 0;
  there.steps = 1;
  back.plan_split = back.plan_length = there.plan_split = there.plan_length = 0;
  const Index left = kernels.tape_size(back, call.variant, call.regime) -
                     kernels.tape_size(there, call.variant, call.regime);
  return teams * kernels.scratch_bytes(call.params, call.variant, call.regime) +
         round_up(in.x.size(0), together) * left * Index(sizeof(T));
}

// Bytes of scratch of a call, all teams together, as if every cotangent were asked for.
Index linear_scratch_bytes(PB_LINEAR_ARGUMENTS) {
  const LinearInputs in{PB_LINEAR_NAMES};
  in.check();
  return x.scalar_type() == at::kDouble ? scratch_bytes<double>(in) : scratch_bytes<float>(in);
}

Forward linear_unroll(PB_LINEAR_ARGUMENTS) {
  const LinearInputs in{PB_LINEAR_NAMES};
  in.check();
  return in.x.scalar_type() == at::kDouble ? forward<double>(in) : forward<float>(in);
}

LinearGradients::Tuple linear_unroll_backward(const std::optional<Tensor>& w_bar,
                                              const std::optional<Tensor>& buffers_bar,
                                              const std::optional<Tensor>& loss_bar,
                                              const std::optional<Tensor>& logits_bar, const Tensor& w,
                                              const Tensor& logits, Tensor trajectory, c10::List<bool> needs,
                                              PB_LINEAR_ARGUMENTS) {
  const LinearInputs in{PB_LINEAR_NAMES};
  in.check();
  LinearGradients grads(in, needs);
  const LinearCotangents bars{w_bar, buffers_bar, loss_bar, logits_bar};
  if (in.x.scalar_type() == at::kDouble) {
    backward<double>(in, bars, w, logits, trajectory, grads);
  } else {
    backward<float>(in, bars, w, logits, trajectory, grads);
  }
  return grads.tuple();
}

// clang-format off
#define PB_LINEAR_SCHEMA                                                                               \
  "Tensor x, Tensor y, Tensor? weights, Tensor l2, Tensor? w0, Tensor? buffers0, "                     \
  "Tensor? setting0, Tensor? setting1, Tensor? setting2, Tensor? setting3, Tensor? setting4, "         \
  "Tensor? query_x, Tensor? query_y, Tensor? query_weights, "                                          \
  "str loss, str coordinates, str regime, str optimizer, "                                             \
  "int classes, bool bias, float scale, float query_scale, int flags, int buffers, int start, "        \
  "int steps, int[] plan, int slots, bool truncated, bool keep"

TORCH_LIBRARY(pybilevel, m) {
  m.def("linear_scratch_bytes(" PB_LINEAR_SCHEMA ") -> int");
  m.def("linear_unroll(" PB_LINEAR_SCHEMA ") -> "
        "(Tensor w, Tensor buffers, Tensor outer, Tensor logits, Tensor trajectory, Tensor status)");
  m.def("linear_unroll_backward("
        "Tensor? w_bar, Tensor? buffers_bar, Tensor? outer_bar, Tensor? logits_bar, "
        "Tensor w, Tensor logits, Tensor(a!) trajectory, bool[] needs, " PB_LINEAR_SCHEMA ") -> "
        "(Tensor x, Tensor y, Tensor weights, Tensor l2, Tensor w0, Tensor buffers0, "
        "Tensor setting0, Tensor setting1, Tensor setting2, Tensor setting3, Tensor setting4, "
        "Tensor query_x, Tensor query_y, Tensor query_weights)");
}
// clang-format on

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
