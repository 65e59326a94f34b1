// Sums over tasks, or steps, of what each of them has its own of.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <numeric>

#include "core/portable.hpp"

namespace pb {

constexpr Index kColumns = 64;

// Totals over tasks of up to kColumns columns of each [B, n], from column j on; one task after the other, in double
// precision. Some columns at a time: their sums stay close, which torch's sum over the first axis does not achieve (50 us
// for 25 tasks of 1761 parameters, here 8), and none waits for another.
template <class T>
void total_columns(const T* each, Index tasks, Index n, Index j, Index count, double (&totals)[kColumns]) {
  std::fill(totals, totals + kColumns, 0.0);
  for (Index b = 0; b < tasks; ++b) {
    const T* const row = each + b * n + j;
    if (count == kColumns) {
      for (Index k = 0; k < kColumns; ++k) totals[k] += static_cast<double>(row[k]);
    } else {
      for (Index k = 0; k < count; ++k) totals[k] += static_cast<double>(row[k]);
    }
  }
}

// each [B, n], sum [n].
template <class T>
void sum_tasks(const T* each, Index tasks, Index n, T* sum) {
  double totals[kColumns];
  for (Index j = 0; j < n; j += kColumns) {
    const Index count = std::min(kColumns, n - j);
    total_columns(each, tasks, n, j, count, totals);
    for (Index k = 0; k < count; ++k) sum[j + k] = static_cast<T>(totals[k]);
  }
}

// each [B, n]: the sum of all.
template <class T>
T sum_all(const T* each, Index tasks, Index n) {
  double totals[kColumns], all = 0;
  for (Index j = 0; j < n; j += kColumns) {
    total_columns(each, tasks, n, j, std::min(kColumns, n - j), totals);
    all = std::accumulate(totals, totals + kColumns, all);
  }
  return static_cast<T>(all);
}

// each [B, ...], sum [1, ...], both contiguous.
inline void sum_tasks(const at::Tensor& each, at::Tensor& sum) {
  if (!each.is_cpu()) {
    sum.copy_(each.sum(0, true));
  } else if (each.scalar_type() == at::kDouble) {
    sum_tasks(each.const_data_ptr<double>(), each.size(0), sum.numel(), sum.mutable_data_ptr<double>());
  } else {
    sum_tasks(each.const_data_ptr<float>(), each.size(0), sum.numel(), sum.mutable_data_ptr<float>());
  }
}

// each [B, T], contiguous: its sum over tasks, over steps, or over both, contiguous; in double precision.
template <class T>
void sum_axes(const T* each, Index tasks, Index steps, bool over_tasks, bool over_steps, T* sum) {
  if (!over_tasks) {
    for (Index b = 0; b < tasks; ++b) {
      const T* const row = each + b * steps;
      sum[b] = static_cast<T>(std::accumulate(row, row + steps, 0.0));
    }
  } else if (over_steps) {
    *sum = sum_all(each, tasks, steps);
  } else {
    sum_tasks(each, tasks, steps, sum);
  }
}

inline at::Tensor sum_axes(const at::Tensor& each, Index tasks, Index steps, bool over_tasks,
                           bool over_steps) {
  if (!over_tasks && !over_steps) return each;
  const at::Tensor rows = each.contiguous();
  at::Tensor sum = at::empty({over_tasks ? 1 : tasks, over_steps ? 1 : steps}, each.options());
  if (each.scalar_type() == at::kDouble) {
    sum_axes(rows.const_data_ptr<double>(), tasks, steps, over_tasks, over_steps,
             sum.mutable_data_ptr<double>());
  } else {
    sum_axes(rows.const_data_ptr<float>(), tasks, steps, over_tasks, over_steps,
             sum.mutable_data_ptr<float>());
  }
  return sum;
}

}  // namespace pb
