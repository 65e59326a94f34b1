// Instantiates the linear tasks for CPU teams; compiled once per instruction set (PB_ISA).
#include "cpu/linear.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "cpu/team.hpp"
#include "driver/linear_dispatch.hpp"

namespace pb::inline PB_ISA {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <class Task, class T>
Index scratch_size(const LinearParams<T>& params, bool reverse) {
  Arena<T> sizing;
  const Task task(sizing, params, reverse);
  return round_up(sizing.used() + 1, Arena<T>::kAlign);
}

template <class Task, class T>
std::unique_ptr<T, Free> allocate_scratch(const LinearParams<T>& params, bool reverse) {
  const Index count = scratch_size<Task>(params, reverse);
  T* const base = static_cast<T*>(std::aligned_alloc(64, count * sizeof(T)));
  if (!base) throw std::bad_alloc();
  if (params.poison) {
    for (Index i = 0; i < count; ++i) base[i] = std::numeric_limits<T>::quiet_NaN();
  }
  return std::unique_ptr<T, Free>(base);
}

template <class Task, class Team, class T>
void run_range(const LinearParams<T>& params, const Team& team, Index begin, Index end, bool reverse) {
  const auto scratch = allocate_scratch<Task>(params, reverse);
  Arena<T> arena(scratch.get());
  Task task(arena, params, reverse);
  for (Index b = begin; b < end; ++b) reverse ? task.reverse(team, b) : task.forward(team, b);
}

template <class T, bool kReverse>
void run_rows(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  with_linear_task<Crew<T>>(
      variant, [&]<class Task> { run_range<Task>(params, Crew<T>{parallel}, 0, params.tasks, kReverse); });
}

template <class T, bool kReverse>
void run_tasks(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  const Index size = group_size(params.tasks);
  with_linear_task<Solo<T>>(variant, [&]<class Task> {
    parallel(ceil_div(params.tasks, size), [&](Index group) {
      const Index begin = group * size, end = std::min(begin + size, params.tasks);
      run_range<Task>(params, Solo<T>{}, begin, end, kReverse);
    });
  });
}

template <class T, bool kReverse>
void run(const LinearParams<T>& params, LinearVariant variant, Regime regime, const Parallel& parallel) {
  if (regime == Regime::kRows) {
    run_rows<T, kReverse>(params, variant, parallel);
  } else {
    run_tasks<T, kReverse>(params, variant, parallel);
  }
}

// Both teams lay out the same states and the same scratch.
template <class T>
Index state_size(const LinearParams<T>& params, LinearVariant variant) {
  return with_linear_task<Solo<T>>(variant, [&]<class Task> {
    Arena<T> sizing;
    return Task(sizing, params, false).state_size();
  });
}

template <class T>
Index scratch_bytes(const LinearParams<T>& params, LinearVariant variant) {
  return with_linear_task<Solo<T>>(variant, [&]<class Task> {
    return std::max(scratch_size<Task>(params, false), scratch_size<Task>(params, true)) * Index(sizeof(T));
  });
}

template <class T>
constexpr LinearEntries<T> kEntries{state_size<T>, scratch_bytes<T>, run<T, false>, run<T, true>};

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
