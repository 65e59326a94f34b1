// The plain struct that crosses from torch to the kernels: one batch of linear inner problems and their unroll.
//
// Sizes: B tasks, n support rows, m query rows, d features, c classes (or outputs), D = d + bias rows of W, T steps.
// Cotangents are written x_bar; a null pointer is an absent input or a cotangent nobody asked for.
#pragma once

#include "core/placed_plan.hpp"
#include "core/precision.hpp"
#include "core/setting.hpp"
#include "core/view.hpp"

namespace pb {

// One data set per task: features, targets (class labels or dense), example weights.
template <class T>
struct LinearData {
  Index rows = 0;                    // n or m
  Batch<const T> x;                  // [B, rows, d], contiguous features
  Batch<const std::int64_t> labels;  // [B, rows], or null
  Batch<const T> targets;            // [B, rows, c], contiguous, where labels is null
  Batch<const T> weights;            // [B, rows]
  T scale = 1;                       // 1 / rows ("mean") or 1 ("sum")

  Batch<T> x_bar;        // [B, rows, d]
  Batch<T> targets_bar;  // [B, rows, c]
  Batch<T> weights_bar;  // [B, rows]
};

template <class T>
struct LinearParams : UnrollParams {
  Index tasks = 0, features = 0, classes = 0;
  bool bias = true;

  LinearData<T> support, query;  // query.rows == 0: no outer objective
  Batch<const T> l2;             // [B]
  Batch<T> l2_bar;               // [B]
  Batch<const T> w0;             // [B, D, c]; null: zeros
  Batch<T> w0_bar;

  OptimizerParams<T> optimizer;
  Batches<const T> buffers0;  // [K, B, D, c], the optimizer's buffers beside w0; null: zeros
  Batches<T> buffers0_bar;

  T* trajectory = nullptr;  // [B, tape_size]: the states, and what is left behind them for the reverse half

  Batch<T> w;             // [B, D, c] results
  Batches<T> buffers;     // [K, B, D, c]
  T* loss = nullptr;      // [B]
  Batch<T> logits;        // [B, m, c]
  int* status = nullptr;  // [B]: -1, or the first t whose state w_t is not finite

  Batch<const T> w_bar;                  // [B, D, c]
  Batches<const T> buffers_bar;          // [K, B, D, c]
  const T* loss_bar = nullptr;           // [B]
  Batch<const T> logits_bar;             // [B, m, c]
  Batch<const T> w_final, logits_final;  // the results of the forward half, read by the reverse half

  T* workspace = nullptr;  // CUDA: [blocks, workspace_size], for scratch that does not fit in shared memory
  Precision precision = Precision::kFp32;  // of the products that Shape::rounded names; CUDA, float
  bool poison = false;                     // tests: fill fresh scratch with NaN

  // Scalars of the trajectory that belong to one task, given those of a slot and of what is left behind them.
  PB_HD Index tape_size(Index slot, Index left) const {
    return (this->slots + 1) * slot + (query.rows > 0 && this->reversible() ? left : 0);
  }
};

}  // namespace pb
