// The kernels of one step of an inner optimizer over many parameter tensors, instantiated by optimizer_<precision>.cu.
//
// The formulas want the parts of a state one after the other, and here they are tensors of their own: so a block copies a
// tile of each together in shared memory, runs it there as a state of its own, and copies it out. Which block takes which
// tiles follows from the sizes alone, and so does the order of additions.
#pragma once

#include <algorithm>
#include <limits>
#include <new>
#include <stdexcept>

#include "cuda/optimizer.hpp"
#include "cuda/portability.hpp"
#include "cuda/team.hpp"
#include "driver/any_optimizer.hpp"

namespace pb::cuda {

inline constexpr Index kTile = 512;        // elements of a leaf in shared memory at once
inline constexpr Index kRun = 4 * kTile;   // elements that one block takes
inline constexpr int kMaxPointers = 352;   // of one launch: arguments are 4 KiB at most
inline constexpr unsigned kThreads = 256;  // always: it decides the order of additions

// The leaves of one launch. `each` pointers a leaf: w and buffers, then the gradient, then (step) where their successors go,
// or (pullback) the cotangents of the successors, where those of w and buffers go, and where that of the gradient goes.
template <class T>
struct OptimizerKernelParams {
  OptimizerParams<T> params;
  const float* count;
  double* sums;  // of this launch's blocks, kMaxSettings each
  int each;
  Index size[kMaxLeaves];
  const T* pointers[kMaxPointers];
};
static_assert(sizeof(OptimizerKernelParams<double>) <= 4096);

// Shared memory of a block: what the team needs, its own copy of the params, the cotangents of the settings, the tiles.
template <class T>
struct OptimizerFrame {
  static constexpr Index kParamsAt = BlockTeam<T>::kScratch * static_cast<Index>(sizeof(T));
  static constexpr Index kBarsAt = kParamsAt + round_up(sizeof(OptimizerParams<T>), 64);
  static constexpr Index kTilesAt = kBarsAt + round_up(kMaxSettings * sizeof(T), 64);

  unsigned char* base;

  static std::size_t bytes(Index tiles) { return kTilesAt + tiles * kTile * sizeof(T); }

  __device__ BlockTeam<T> team() const { return {reinterpret_cast<T*>(base)}; }
  __device__ OptimizerParams<T>* params() const {
    return reinterpret_cast<OptimizerParams<T>*>(base + kParamsAt);
  }
  __device__ T* bars() const { return reinterpret_cast<T*>(base + kBarsAt); }
  __device__ T* tile(Index i) const { return reinterpret_cast<T*>(base + kTilesAt) + i * kTile; }
};

// The part of a leaf that is this block's.
struct OptimizerRun {
  int leaf = 0;
  Index begin = 0, end = 0;

  template <class T>
  __device__ explicit OptimizerRun(const OptimizerKernelParams<T>& p) {
    Index block = blockIdx.x;
    for (Index runs = 0; block >= (runs = ceil_div(p.size[leaf], kRun)); ++leaf) block -= runs;
    begin = block * kRun;
    end = begin + kRun < p.size[leaf] ? begin + kRun : p.size[leaf];
  }
};

// Copies the params for the block; cotangents of the settings go to frame.bars().
template <class T>
__device__ void place_params(const OptimizerFrame<T>& frame, const OptimizerKernelParams<T>& p, bool bars) {
  frame.team().for_each(1, [=, &p](Index) {
    OptimizerParams<T>* const mine = new (frame.params()) OptimizerParams<T>(p.params);
    if (p.count) mine->start += static_cast<Index>(*p.count);
    for (int i = 0; bars && i < kMaxSettings; ++i) {
      frame.bars()[i] = 0;
      if (mine->settings[i].value) mine->settings[i].bar = {frame.bars() + i, 0, 0};
    }
  });
}

// Elements [first, first + n) of `parts` tensors into the tiles from `to` on, without gaps.
template <class T>
__device__ void read_tiles(const BlockTeam<T>& team, const T* const* from, int parts, Index first, Index n,
                           T* to) {
  team.for_each(n, [=](Index i) {
    for (int k = 0; k < parts; ++k) to[k * n + i] = from[k][first + i];
  });
}

// The way back. The table of pointers holds those to results as constant ones, too.
template <class T>
__device__ void write_tiles(const BlockTeam<T>& team, const T* const* to, int parts, Index first, Index n,
                            const T* from) {
  team.for_each(n, [=](Index i) {
    for (int k = 0; k < parts; ++k) const_cast<T*>(to[k])[first + i] = from[k * n + i];
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    optimizer_step_kernel(const __grid_constant__ OptimizerKernelParams<T> p) {
  const OptimizerFrame<T> frame{shared_memory<unsigned char>()};
  const BlockTeam<T> team = frame.team();
  const int parts = 1 + static_cast<int>(p.params.buffers);
  T *const state = frame.tile(0), *const g = frame.tile(parts);
  place_params(frame, p, false);
  const AnyOptimizer<BlockTeam<T>, true> optimizer(team, *frame.params(), 0);
  const OptimizerRun run(p);
  const T* const* const at = p.pointers + run.leaf * p.each;
  for (Index first = run.begin; first < run.end; first += kTile) {
    const Index n = first + kTile < run.end ? kTile : run.end - first;
    read_tiles(team, at, parts, first, n, state);
    read_tiles(team, at + parts, 1, first, n, g);
    optimizer.step(team, 0, n, state, g, state);
    write_tiles(team, at + parts + 1, parts, first, n, state);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    optimizer_pullback_kernel(const __grid_constant__ OptimizerKernelParams<T> p) {
  const OptimizerFrame<T> frame{shared_memory<unsigned char>()};
  const BlockTeam<T> team = frame.team();
  const int parts = 1 + static_cast<int>(p.params.buffers);
  T *const state = frame.tile(0), *const g = frame.tile(parts), *const bar = frame.tile(parts + 1),
           *const g_bar = frame.tile(2 * parts + 1), *const bars = frame.bars();
  place_params(frame, p, true);
  const AnyOptimizer<BlockTeam<T>, true> optimizer(team, *frame.params(), 0);
  const OptimizerRun run(p);
  const T *const *const at = p.pointers + run.leaf * p.each, *const *const bars_at = at + parts + 1;
  double sum = 0;  // thread i: of setting i
  for (Index first = run.begin; first < run.end; first += kTile) {
    const Index n = first + kTile < run.end ? kTile : run.end - first;
    read_tiles(team, at, parts, first, n, state);
    read_tiles(team, at + parts, 1, first, n, g);
    read_tiles(team, bars_at, parts, first, n, bar);
    optimizer.pullback(team, 0, n, state, g, bar, g_bar);
    write_tiles(team, bars_at + parts, parts, first, n, bar);
    write_tiles(team, bars_at + 2 * parts, 1, first, n, g_bar);
    if (threadIdx.x < kMaxSettings) sum += static_cast<double>(bars[threadIdx.x]);
  }
  if (threadIdx.x < kMaxSettings) p.sums[blockIdx.x * kMaxSettings + threadIdx.x] = sum;
}

template <class T>
struct SettingSums {
  const double* sums;
  Index blocks;
  T* settings_bar;
};

// One block: the sums of all blocks.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    optimizer_sums_kernel(const __grid_constant__ SettingSums<T> p) {
  const BlockTeam<double> team{shared_memory<double>()};
  double totals[kMaxSettings];
  team.template reduce<kMaxSettings>(p.blocks, totals, [&](Index i, double (&mine)[kMaxSettings]) {
#pragma unroll
    for (int k = 0; k < kMaxSettings; ++k) mine[k] += p.sums[i * kMaxSettings + k];
  });
  team.for_each(1, [&](Index) {
#pragma unroll
    for (int k = 0; k < kMaxSettings; ++k) p.settings_bar[k] = static_cast<T>(totals[k]);
  });
}

template <class T>
Index runs_of(const OptimizerLeaf<T>* leaves, Index count) {
  Index runs = 0;
  for (Index i = 0; i < count; ++i) runs += ceil_div(leaves[i].size, kRun);
  return runs;
}

// The pointers of a leaf, in the order of OptimizerKernelParams.
template <class T>
int pack(const OptimizerLeaf<T>& leaf, int parts, bool reverse, const T** to) {
  const T** const begin = to;
  to = std::copy_n(leaf.state, parts, to);
  *to++ = leaf.g;
  to = reverse ? std::copy_n(leaf.next_bar, parts, to) : std::copy_n(leaf.next, parts, to);
  if (reverse) to = std::copy_n(leaf.bar, parts, to), *to++ = leaf.g_bar;
  return static_cast<int>(to - begin);
}

// f(params, blocks) for as many leaves at a time as a launch takes.
template <class T, class F>
void for_launches(const OptimizerCall<T>& call, bool reverse, double* sums, F&& f) {
  const int parts = 1 + static_cast<int>(call.params.buffers), each = reverse ? 3 * parts + 2 : 2 * parts + 1;
  const Index most = std::min<Index>(kMaxLeaves, kMaxPointers / each);
  for (Index first = 0; first < call.leaf_count; first += most) {
    const Index count = std::min(most, call.leaf_count - first), blocks = runs_of(call.leaves + first, count);
    if (blocks > std::numeric_limits<int>::max())
      throw std::invalid_argument(
          "fused CUDA unavailable: more parameters than blocks. Use backend=\"generic\".");
    OptimizerKernelParams<T> p{};
    p.params = call.params, p.count = call.count, p.sums = sums;
    p.each = each;
    for (Index i = 0; i < count; ++i) {
      p.size[i] = call.leaves[first + i].size;
      pack(call.leaves[first + i], parts, reverse, p.pointers + i * each);
    }
    f(p, static_cast<unsigned>(blocks));
    if (sums) sums += blocks * kMaxSettings;
  }
}

template <class T>
Index optimizer_workspace(const OptimizerCall<T>& call) {
  return runs_of(call.leaves, call.leaf_count) * kMaxSettings;
}

template <class T>
void optimizer_step(const OptimizerCall<T>& call) {
  const std::size_t bytes = OptimizerFrame<T>::bytes(2 + call.params.buffers);
  for_launches(call, false, nullptr, [&](const OptimizerKernelParams<T>& p, unsigned blocks) {
    launch(optimizer_step_kernel<T>, {blocks, kThreads, bytes, call.stream}, p, "optimizer_step");
  });
}

template <class T>
void optimizer_pullback(const OptimizerCall<T>& call, double* workspace, T* settings_bar) {
  const std::size_t bytes = OptimizerFrame<T>::bytes(2 * (2 + call.params.buffers));
  for_launches(call, true, workspace, [&](const OptimizerKernelParams<T>& p, unsigned blocks) {
    launch(optimizer_pullback_kernel<T>, {blocks, kThreads, bytes, call.stream}, p, "optimizer_pullback");
  });
  launch(optimizer_sums_kernel<T>, {1, kThreads, BlockTeam<double>::kScratch * sizeof(double), call.stream},
         {workspace, optimizer_workspace(call) / kMaxSettings, settings_bar}, "optimizer_sums");
}

}  // namespace pb::cuda
