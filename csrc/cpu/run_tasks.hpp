// Runs the tasks of a call on CPU teams, each team with scratch of its own.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "core/arena.hpp"
#include "cpu/linear.hpp"

namespace pb::inline PB_ISA {

struct FreeScratch {
  void operator()(void* p) const { std::free(p); }
};

// Bytes of the scratch of one team.
template <class Task, class Params>
Index scratch_size(const Params& params, bool reverse) {
  Arena sizing;
  const Task task(sizing, params, reverse);
  return sizing.used() + Arena::kAlign;
}

template <class Task, class T, template <class> class Params>
std::unique_ptr<T, FreeScratch> allocate_scratch(const Params<T>& params, bool reverse) {
  const Index bytes = scratch_size<Task>(params, reverse);
  T* const base = static_cast<T*>(std::aligned_alloc(Arena::kAlign, bytes));
  if (!base) throw std::bad_alloc();
  if (params.poison) std::fill(base, base + bytes / sizeof(T), std::numeric_limits<T>::quiet_NaN());
  return std::unique_ptr<T, FreeScratch>(base);
}

// Runs the tasks [begin, end) one after the other, backwards in the reverse half: the states that the forward half has
// left last are found in a cache.
template <class Task, bool kReverse, class Team, class Params>
void run_range(const Params& params, const Team& team, Index begin, Index end) {
  const auto scratch = allocate_scratch<Task>(params, kReverse);
  Arena arena(scratch.get());
  Task task(arena, params, kReverse);
  for (Index i = 0; i < end - begin; ++i)
    kReverse ? task.reverse(team, end - 1 - i) : task.forward(team, begin + i);
}

// A thread per task.
template <class Task, bool kReverse, class Team, class Params>
void run_each(const Params& params, const Parallel& parallel) {
  const Index size = group_size(params.tasks);
  const Index groups = ceil_div(params.tasks, size);
  parallel(groups, [&](Index i) {
    const Index begin = (kReverse ? groups - 1 - i : i) * size, end = std::min(begin + size, params.tasks);
    run_range<Task, kReverse>(params, Team{}, begin, end);
  });
}

}  // namespace pb::inline PB_ISA
