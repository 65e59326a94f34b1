// Instantiates the linear tasks for CPU teams; compiled once per instruction set (PB_ISA).
#include "cpu/linear.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "cpu/lanes_team.hpp"
#include "cpu/team.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::inline PB_ISA {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <class Task, class T>
Index scratch_size(const LinearParams<T>& params, bool reverse) {
  Arena sizing;
  const Task task(sizing, params, reverse);
  return sizing.used() + Arena::kAlign;
}

template <class Task, class T>
std::unique_ptr<T, Free> allocate_scratch(const LinearParams<T>& params, bool reverse) {
  const Index bytes = scratch_size<Task>(params, reverse);
  T* const base = static_cast<T*>(std::aligned_alloc(Arena::kAlign, bytes));
  if (!base) throw std::bad_alloc();
  if (params.poison) std::fill(base, base + bytes / sizeof(T), std::numeric_limits<T>::quiet_NaN());
  return std::unique_ptr<T, Free>(base);
}

// Runs the tasks [begin, end) one after the other.
template <class Task, bool kReverse, class Team, class T>
void run_range(const LinearParams<T>& params, const Team& team, Index begin, Index end) {
  const auto scratch = allocate_scratch<Task>(params, kReverse);
  Arena arena(scratch.get());
  Task task(arena, params, kReverse);
  for (Index b = begin; b < end; ++b) kReverse ? task.reverse(team, b) : task.forward(team, b);
}

template <class T, bool kReverse>
void run_rows(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  with_linear_task<Crew<T>>(
      variant, [&]<class Task> { run_range<Task, kReverse>(params, Crew<T>{parallel}, 0, params.tasks); });
}

template <class T, bool kReverse>
void run_tasks(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  const Index size = group_size(params.tasks);
  with_linear_task<Solo<T>>(variant, [&]<class Task> {
    parallel(ceil_div(params.tasks, size), [&](Index group) {
      const Index begin = group * size, end = std::min(begin + size, params.tasks);
      run_range<Task, kReverse>(params, Solo<T>{}, begin, end);
    });
  });
}

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
    return params.tape_size(task.slot_size(), task.head_size());
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

#define PB_JOIN(a, b) a##b
#define PB_TABLE(isa) PB_JOIN(linear_kernels_, isa)
#define PB_QUOTE(isa) #isa
#define PB_NAME(isa) PB_QUOTE(isa)

namespace pb {

extern const LinearKernels PB_TABLE(PB_ISA) = {PB_NAME(PB_ISA), kPackBytes, kEntries<float>,
                                               kEntries<double>};

}  // namespace pb
