// One step of an inner optimizer, and its pullback, over parameter tensors of any size; compiled once per instruction set.
//
// The formulas want the parts of a state one after the other, and here they are tensors of their own: so a block of
// elements at a time is copied together, run where it is still in the first-level cache, and copied out.
#include "cpu/optimizer.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/table.hpp"
#include "cpu/team.hpp"
#include "driver/any_optimizer.hpp"

namespace pb::inline PB_ISA {
namespace {

constexpr Index kBlock = 512;  // elements
constexpr Index kChunk =
    32 * kBlock;  // elements that one thread takes; where it is cut decides the order of additions

struct Chunk {
  Index leaf, begin, end;
};

template <class T>
std::vector<Chunk> chunks_of(const OptimizerLeaf<T>* leaves, Index count) {
  std::vector<Chunk> chunks;
  for (Index leaf = 0; leaf < count; ++leaf) {
    for (Index begin = 0; begin < leaves[leaf].size; begin += kChunk)
      chunks.push_back({leaf, begin, std::min(begin + kChunk, leaves[leaf].size)});
  }
  return chunks;
}

// Copies of the parts of a state, and of a gradient, padded with zeros to whole packs.
template <class T>
struct Block {
  alignas(64) T state[(1 + kMaxBuffers) * kBlock];
  alignas(64) T g[kBlock];
  Index size = 0, padded = 0;

  void resize(Index n) {
    size = n;
    padded = round_up(n, Solo<T>::kLanes);
  }

  void read(const T* from, Index first, T* to) const {
    std::copy_n(from + first, size, to);
    std::fill(to + size, to + padded, T(0));
  }

  void read_state(const T* const* parts, Index count, Index first) {
    for (Index k = 0; k < count; ++k) read(parts[k], first, state + k * padded);
  }

  void write_state(T* const* parts, Index count, Index first) const {
    for (Index k = 0; k < count; ++k) std::copy_n(state + k * padded, size, parts[k] + first);
  }
};

// f(chunk, number) for all of them, on any threads; where there is little to do, on one.
template <class F>
void for_chunks(const std::vector<Chunk>& chunks, const Parallel& parallel, F&& f) {
  Index total = 0;
  for (const Chunk& chunk : chunks) total += chunk.end - chunk.begin;
  const Index count = static_cast<Index>(chunks.size());
  if (total > 2 * kChunk) return parallel(count, [&](Index i) { f(chunks[i], i); });
  for (Index i = 0; i < count; ++i) f(chunks[i], i);
}

template <class T>
void step(const OptimizerParams<T>& params, const OptimizerLeaf<T>* leaves, Index count,
          const Parallel& parallel) {
  const Index parts = 1 + params.buffers;
  with_optimizer<Solo<T>, false>(static_cast<InnerOptimizer>(params.row), [&]<class Optimizer> {
    for_chunks(chunks_of(leaves, count), parallel, [&](const Chunk& chunk, Index) {
      const OptimizerLeaf<T>& leaf = leaves[chunk.leaf];
      const Solo<T> team;
      const Optimizer optimizer(team, params, 0);
      Block<T> block;
      for (Index first = chunk.begin; first < chunk.end; first += kBlock) {
        block.resize(std::min(kBlock, chunk.end - first));
        block.read_state(leaf.state, parts, first);
        block.read(leaf.g, first, block.g);
        optimizer.step(team, 0, block.padded, block.state, block.g, block.state);
        block.write_state(leaf.next, parts, first);
      }
    });
  });
}

// The cotangents of the settings from one chunk, added up block by block.
template <class T, class Optimizer>
void pull_chunk(OptimizerParams<T> params, const OptimizerLeaf<T>& leaf, const Chunk& chunk,
                std::array<double, kMaxSettings>& sums) {
  const Index parts = 1 + params.buffers;
  T bars[kMaxSettings] = {};
  for (int i = 0; i < kMaxSettings; ++i) {
    if (params.settings[i].value) params.settings[i].bar = {&bars[i], 0, 0};
  }
  const Solo<T> team;
  const Optimizer optimizer(team, params, 0);
  Block<T> block, bar;
  for (Index first = chunk.begin; first < chunk.end; first += kBlock) {
    for (Block<T>* one : {&block, &bar}) one->resize(std::min(kBlock, chunk.end - first));
    block.read_state(leaf.state, parts, first);
    block.read(leaf.g, first, block.g);
    bar.read_state(leaf.next_bar, parts, first);
    optimizer.pullback(team, 0, block.padded, block.state, block.g, bar.state, bar.g);
    bar.write_state(leaf.bar, parts, first);
    std::copy_n(bar.g, bar.size, leaf.g_bar + first);
    for (int i = 0; i < kMaxSettings; ++i) sums[i] += static_cast<double>(bars[i]);
  }
}

template <class T>
void pullback(const OptimizerParams<T>& params, const OptimizerLeaf<T>* leaves, Index count,
              double (&bars)[kMaxSettings], const Parallel& parallel) {
  const std::vector<Chunk> chunks = chunks_of(leaves, count);
  std::vector<std::array<double, kMaxSettings>> sums(chunks.size());
  with_optimizer<Solo<T>, false>(static_cast<InnerOptimizer>(params.row), [&]<class Optimizer> {
    for_chunks(chunks, parallel, [&](const Chunk& chunk, Index i) {
      pull_chunk<T, Optimizer>(params, leaves[chunk.leaf], chunk, sums[i]);
    });
  });
  for (int k = 0; k < kMaxSettings; ++k) {
    bars[k] = 0;
    for (const auto& sum : sums) bars[k] += sum[k];
  }
}

}  // namespace
}  // namespace pb::inline PB_ISA

namespace pb {

extern const OptimizerKernels PB_TABLE(optimizer_kernels) = {{step<float>, pullback<float>},
                                                             {step<double>, pullback<double>}};

}  // namespace pb
