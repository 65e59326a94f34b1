// One pass over the rows of a data set that ends in a sum the size of the model: rows are cut into chunks (parallel)
// of blocks (so that a block of features is still in cache when it is read the second time). The cuts depend on the
// sizes alone and the partial sums are added in order, so the result does not depend on the number of threads.
#pragma once

#include "core/arena.hpp"
#include "core/team.hpp"

namespace pb::inline PB_ISA {

template <class Team>
class LinearSweep {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  static constexpr RowCut kCut = Team::kRowCut;

  // `size` scalars of a sum; behind each partial one are `scratch` scalars for whatever a block needs.
  PB_HD LinearSweep(Arena& arena, Index rows, Index features, Index size, Index scratch = 0)
      : cut_(cut(rows, features, size)),
        size_(size),
        distance_(size + scratch),
        partial_(arena.take<T>(cut_.chunks * distance_)) {}

  PB_HD static RowChunks cut(Index rows, Index features, Index size) {
    const Index block = block_rows(features), chunks = count_chunks(rows, size);
    return {rows, features, chunks, round_up(ceil_div(rows, chunks), block), block};
  }

  // As many rows as stay in the first-level cache between the two passes over them, in whole packs.
  PB_HD static Index block_rows(Index features) {
    const Index unit = 64 / static_cast<Index>(sizeof(T)), fit = kCut.bytes / (features * Index(sizeof(T)));
    return fit < unit ? unit : fit < kCut.block ? fit / unit * unit : kCut.block;
  }

  // Collective: passes will ask for rows of x through near().
  PB_HD void keep(const Team& team, Matrix<const T> x) const {
    if constexpr (requires { team.keep(x, cut_); }) team.keep(x, cut_);
  }

  // Rows first.. of the x that keep() was given, from where the member has them. In one pass, a member asks for all of its
  // blocks in their order, or for none.
  template <class Member>
  PB_HD Matrix<const T> near(const Member& member, Matrix<const T> x, Index first, Index rows) const {
    if constexpr (requires { member.near(x, cut_, first, rows); }) {
      return member.near(x, cut_, first, rows);
    } else {
      return {x[first], x.row};
    }
  }

  // f(member, first row, number of rows, partial sum to add to)
  template <class F>
  PB_HD void run(const Team& team, F f) const {
    team.chunks(cut_.chunks, [=, this](const auto& member, Index chunk) {
      T* const partial = this->partial(chunk);
      member.for_each(size_, [=](Index i) { partial[i] = 0; });
      const Index begin = chunk * cut_.chunk,
                  end = begin + cut_.chunk < cut_.rows ? begin + cut_.chunk : cut_.rows;
      for (Index first = begin; first < end; first += cut_.block) {
        f(member, first, first + cut_.block < end ? cut_.block : end - first, partial);
      }
    });
  }

  // out (+)= sum of the partial sums.
  PB_HD void collect(const Team& team, T* out, bool accumulate) const {
    team.for_lanes(size_, [=, this](Index i) {
      Lane total = accumulate ? Team::load(out + i) : Lane{};
      for (Index chunk = 0; chunk < cut_.chunks; ++chunk) total += Team::load(partial(chunk) + i);
      Team::store(out + i, total);
    });
  }

 private:
  PB_HD static Index count_chunks(Index rows, Index size) {
    const Index wanted = ceil_div(rows, kCut.chunk), fit = kCut.sums / (size * Index(sizeof(T)) + 1);
    const Index most = fit < kCut.few ? kCut.few : fit < kCut.most ? fit : kCut.most;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
  }

  PB_HD T* partial(Index chunk) const { return partial_ + chunk * distance_; }

  RowChunks cut_;
  Index size_, distance_;
  T* partial_;
};

}  // namespace pb::inline PB_ISA
