// One pass over the rows of a data set that ends in a sum the size of the model: rows are cut into chunks (parallel)
// of blocks (so that a block of features is still in cache when it is read the second time). The cuts depend on the
// sizes alone and the partial sums are added in order, so the result does not depend on the number of threads.
#pragma once

#include "core/arena.hpp"
#include "core/lanes.hpp"

namespace pb::inline PB_ISA {

template <class Team>
class LinearSweep {
 public:
  using T = typename Team::Scalar;
  using Lane = typename Team::Lane;
  static constexpr RowCut kCut = Team::kRowCut;

  // `size` scalars of a sum; behind each partial one are `scratch` scalars for whatever a block needs.
  PB_HD LinearSweep(Arena& arena, Index rows, Index features, Index size, Index scratch = 0, bool far = false)
      : rows_(rows),
        size_(size),
        block_(far ? far_rows(rows, features, size) : block_rows(rows, features, size)),
        chunks_(count_chunks(rows, size)),
        distance_(size + scratch),
        partial_(arena.take<T>(chunks_ * distance_)) {}

  // As many rows as stay in the first-level cache between the two passes over them, in whole packs; more where the sum does
  // not stay there.
  PB_HD static Index block_rows(Index rows, Index features, Index size) {
    const Index unit = kLine<T>, fit = kCut.bytes / (features * Index(sizeof(T)));
    if (kCut.tall > 0 && size * Index(sizeof(T)) > 2 * kCut.bytes) {
      const Index chunk = ceil_div(rows + 1, count_chunks(rows, size)), blocks = ceil_div(chunk, kCut.tall);
      return round_up(ceil_div(chunk, blocks), unit);
    }
    return fit < unit ? unit : fit < kCut.block ? fit / unit * unit : kCut.block;
  }

  // The same of a pass that fetches the next block while it reads one: see RowCut.
  PB_HD static Index far_rows(Index rows, Index features, Index size) {
    const Index unit = kLine<T>, least = block_rows(rows, features, size);
    const Index fit = kCut.far / (features * Index(sizeof(T)));
    if (fit <= least) return least;
    const Index chunk = ceil_div(rows + 1, count_chunks(rows, size));
    return round_up(ceil_div(chunk, ceil_div(chunk, fit)), unit);
  }

  // How run() cuts such a data set, in a pass of that kind and where RowCut has no `unit`: for keep() and near(). Whoever wants it
  // keeps it: a member more here, and a CUDA kernel spills.
  PB_HD static RowChunks cut(Index rows, Index features, Index size) {
    const Index block = far_rows(rows, features, size), chunks = count_chunks(rows, size);
    return {rows, features, chunks, round_up(ceil_div(rows, chunks), block), block};
  }

  // Collective: passes will ask for rows of x through near().
  PB_HD static void keep(const Team& team, Matrix<const T> x, const RowChunks& cut) {
    if constexpr (requires { team.keep(x, cut); }) team.keep(x, cut);
  }

  // Rows first.. of the x that keep() was given, from where the member has them. In one pass, a member asks for all of its
  // blocks in their order, or for none.
  template <class Member>
  PB_HD static Matrix<const T> near(const Member& member, Matrix<const T> x, const RowChunks& cut,
                                    Index first, Index rows) {
    if constexpr (requires { member.near(x, cut, first, rows); }) {
      return member.near(x, cut, first, rows);
    } else {
      return {x[first], x.row};
    }
  }

  // How far behind a block of rows of x the next one begins (see Shape), and behind the last one what is `next` scalars behind
  // row 0; 0 where rows have gaps.
  PB_HD Index ahead(Matrix<const T> x, Index features, Index first, Index rows, Index next = 0) const {
    if (x.row != features) return 0;
    return first + rows < rows_ ? rows * x.row : next - first * x.row;
  }

  // f(member, first row, number of rows, partial sum to add to), which is zeroed before where it is `wanted`.
  template <class F>
  PB_HD void run(const Team& team, F f, bool wanted = true) const {
    team.chunks(chunks_, [=, this](const auto& member, Index chunk) {
      T* const partial = this->partial(chunk);
      if (wanted) member.for_each(size_, [=](Index i) { partial[i] = 0; });
      const Index end = begin(chunk + 1);
      for (Index first = begin(chunk); first < end; first += block_) {
        f(member, first, first + block_ < end ? block_ : end - first, partial);
      }
    });
  }

  // run(), then out = the sum of the partial sums, unless it is null. Where there is but one, and scratch is no nearer than
  // memory, it is made in its place, of which f's first call, f(.., out, false), writes all.
  template <class F>
  PB_HD void sum(const Team& team, T* out, F f) const {
    if constexpr (requires { requires Team::kSlotsAreNear; }) {
      if (out && chunks_ == 1) {
        return team.chunks(1, [=, this](const auto& member, Index) {
          for (Index first = 0; first < rows_; first += block_)
            f(member, first, first + block_ < rows_ ? block_ : rows_ - first, out, first > 0);
        });
      }
    }
    run(team, f);
    if (out) collect(team, out, false);
  }

  // out (+)= sum of the partial sums.
  PB_HD void collect(const Team& team, T* out, bool accumulate) const {
    team.for_lanes(size_, [=, this](Index i) {
      Lane total = accumulate ? Team::load(out + i) : Lane{};
      for (Index chunk = 0; chunk < chunks_; ++chunk) total += Team::load(partial(chunk) + i);
      Team::store(out + i, total);
    });
  }

 private:
  // The first row of a chunk.
  PB_HD Index begin(Index chunk) const {
    Index row;
    if constexpr (kCut.unit > 0) {
      row = chunk * ceil_div(rows_, kCut.unit) / chunks_ * kCut.unit;
    } else {
      row = chunk * round_up(ceil_div(rows_, chunks_), block_);
    }
    return row < rows_ ? row : rows_;
  }

  PB_HD static Index count_chunks(Index rows, Index size) {
    const Index wanted = ceil_div(rows, kCut.chunk), fit = kCut.sums / (size * Index(sizeof(T)) + 1);
    const Index most = fit < kCut.few ? kCut.few : fit < kCut.most ? fit : kCut.most;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
  }

  PB_HD T* partial(Index chunk) const { return partial_ + chunk * distance_; }

  Index rows_, size_, block_, chunks_, distance_;
  T* partial_;
};

}  // namespace pb::inline PB_ISA
