// Instantiates the linear tasks for CPU teams; compiled once per instruction set (PB_ISA).
#include "cpu/linear.hpp"

#include <algorithm>

#include "cpu/lanes_team.hpp"
#include "cpu/run_tasks.hpp"
#include "cpu/table.hpp"
#include "cpu/team.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::inline PB_ISA {
namespace {

template <class T, bool kReverse>
void run_rows(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  with_linear_task<Crew<T>>(
      variant, [&]<class Task> { run_range<Task, kReverse>(params, Crew<T>{parallel}, 0, params.tasks); });
}

template <class T, bool kReverse>
void run_tasks(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  with_linear_task<Solo<T>>(variant,
                            [&]<class Task> { run_each<Task, kReverse, Solo<T>>(params, parallel); });
}

static_assert(Lanes<float>::kTasks == tasks_together(Regime::kLanes, kPackBytes, sizeof(float)));

template <class T, bool kReverse>
void run_lanes(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  constexpr Index size = Lanes<T>::kTasks;
  with_linear_bundle<Lanes<T>>(variant, [&]<class Bundle> {
    parallel(ceil_div(params.tasks, size), [&](Index i) {
      const auto scratch = allocate_scratch<Bundle>(params, kReverse);
      Arena arena(scratch.get());
      Bundle bundle(arena, params, kReverse);
      const Lanes<T> team{std::min(size, params.tasks - i * size)};
      kReverse ? bundle.reverse(team, i * size) : bundle.forward(team, i * size);
    });
  });
}

template <class T, bool kReverse>
void run(const LinearParams<T>& params, LinearVariant variant, Regime regime, const Parallel& parallel) {
  if (regime == Regime::kRows) {
    run_rows<T, kReverse>(params, variant, parallel);
  } else if (regime == Regime::kTasks) {
    run_tasks<T, kReverse>(params, variant, parallel);
  } else {
    run_lanes<T, kReverse>(params, variant, parallel);
  }
}

// f.template operator()<Task>() with what runs in a regime; Solo and Crew lay out the same states and scratch.
template <class T, class F>
Index with_any(LinearVariant variant, Regime regime, F&& f) {
  return regime == Regime::kLanes ? with_linear_bundle<Lanes<T>>(variant, f)
                                  : with_linear_task<Solo<T>>(variant, f);
}

template <class T>
Index tape_size(const LinearParams<T>& params, LinearVariant variant, Regime regime) {
  return with_any<T>(variant, regime, [&]<class Task> {
    Arena sizing;
    const Task task(sizing, params, false);
    return params.tape_size(task.slot_size(), task.left_size());
  });
}

template <class T>
Index scratch_bytes(const LinearParams<T>& params, LinearVariant variant, Regime regime) {
  return with_any<T>(variant, regime, [&]<class Task> {
    return std::max(scratch_size<Task>(params, false), scratch_size<Task>(params, true));
  });
}

template <class T>
constexpr LinearEntries<T> kEntries{tape_size<T>, scratch_bytes<T>, run<T, false>, run<T, true>};

}  // namespace
}  // namespace pb::inline PB_ISA

#define PB_QUOTE(isa) #isa
#define PB_NAME(isa) PB_QUOTE(isa)

namespace pb {

extern const LinearKernels PB_TABLE(linear_kernels) = {
    {kEntries<float>, kEntries<double>}, PB_NAME(PB_ISA), kPackBytes};

}  // namespace pb
