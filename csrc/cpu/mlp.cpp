// Instantiates the perceptrons for CPU teams; compiled once per instruction set (PB_ISA).
#include "cpu/mlp.hpp"

#include <algorithm>

#include "cpu/run_tasks.hpp"
#include "cpu/table.hpp"
#include "cpu/team.hpp"
#include "driver/mlp_dispatch.hpp"

namespace pb::inline PB_ISA {
namespace {

template <class T, bool kReverse>
void run(const MlpParams<T>& params, MlpVariant variant, Regime regime, const Parallel& parallel) {
  if (regime == Regime::kRows) {
    with_mlp_task<Crew<T>>(
        variant, [&]<class Task> { run_range<Task, kReverse>(params, Crew<T>{parallel}, 0, params.tasks); });
  } else {
    with_mlp_task<Solo<T>>(variant, [&]<class Task> { run_each<Task, kReverse, Solo<T>>(params, parallel); });
  }
}

// Solo and Crew lay out the same states and scratch.
template <class T>
Index tape_size(const MlpParams<T>& params, MlpVariant variant) {
  return with_mlp_task<Solo<T>>(variant, [&]<class Task> {
    Arena sizing;
    const Task task(sizing, params, false);
    return params.tape_size(task.slot_size(), task.model_size());
  });
}

template <class T>
Index scratch_bytes(const MlpParams<T>& params, MlpVariant variant) {
  return with_mlp_task<Solo<T>>(variant, [&]<class Task> {
    return std::max(scratch_size<Task>(params, false), scratch_size<Task>(params, true));
  });
}

template <class T>
constexpr MlpEntries<T> kEntries{tape_size<T>, scratch_bytes<T>, run<T, false>, run<T, true>};

}  // namespace
}  // namespace pb::inline PB_ISA

namespace pb {

extern const MlpKernels PB_TABLE(mlp_kernels) = {kEntries<float>, kEntries<double>};

}  // namespace pb
