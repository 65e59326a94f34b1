// Instantiates the linear tasks for CPU teams; compiled once per instruction set (PB_ISA).
#include "cpu/linear.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "cpu/team.hpp"
#include "driver/linear_task.hpp"
#include "losses/softmax.hpp"
#include "losses/squared.hpp"

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

template <template <class, class> class Coordinates, class Loss, class T>
void run_coordinates(const LinearParams<T>& params, Regime regime, const Parallel& parallel, bool reverse) {
  if (regime == Regime::kRows) {
    using Task = LinearTask<Crew<T>, Coordinates, Loss>;
    return run_range<Task>(params, Crew<T>{parallel}, 0, params.tasks, reverse);
  }
  using Task = LinearTask<Solo<T>, Coordinates, Loss>;
  const Index size = group_size(params.tasks);
  parallel(ceil_div(params.tasks, size), [&](Index group) {
    const Index begin = group * size, end = begin + size;
    run_range<Task>(params, Solo<T>{}, begin, end < params.tasks ? end : params.tasks, reverse);
  });
}

// Calls f.template operator()<Coordinates, Loss>() for the variant.
template <class F>
auto with_variant(LinearVariant variant, F f) {
  const bool primal = variant.coordinates == Coordinates::kPrimal;
  if (variant.loss == LinearLoss::kSoftmax) {
    return primal ? f.template operator()<LinearPrimal, Softmax>()
                  : f.template operator()<LinearDual, Softmax>();
  }
  return primal ? f.template operator()<LinearPrimal, Squared>()
                : f.template operator()<LinearDual, Squared>();
}

template <class T, bool reverse>
void run(const LinearParams<T>& params, LinearVariant variant, const Parallel& parallel) {
  with_variant(variant, [&]<template <class, class> class Coordinates, class Loss>() {
    run_coordinates<Coordinates, Loss>(params, variant.regime, parallel, reverse);
  });
}

// Both teams lay out the same scratch.
template <class T>
Index scratch(const LinearParams<T>& params, LinearVariant variant) {
  return with_variant(variant, [&]<template <class, class> class Coordinates, class Loss>() {
    using Task = LinearTask<Solo<T>, Coordinates, Loss>;
    const Index forward = scratch_size<Task>(params, false), reverse = scratch_size<Task>(params, true);
    return (forward > reverse ? forward : reverse) * Index(sizeof(T));
  });
}

}  // namespace
}  // namespace pb::inline PB_ISA

#define PB_JOIN(a, b) a##b
#define PB_TABLE(isa) PB_JOIN(linear_kernels_, isa)
#define PB_QUOTE(isa) #isa
#define PB_NAME(isa) PB_QUOTE(isa)

namespace pb {

extern const LinearKernels PB_TABLE(PB_ISA) = {PB_NAME(PB_ISA),    kPackBytes,        scratch<float>,
                                               scratch<double>,    run<float, false>, run<float, true>,
                                               run<double, false>, run<double, true>};

}  // namespace pb
