// CPU teams: one thread (Solo), for many tasks side by side, and a crew of threads (Crew) for one large task.
// Both split work at the same fixed places, so they give bitwise equal results whatever the number of threads.
#pragma once

#include <algorithm>

#include "core/team.hpp"
#include "cpu/gram.hpp"
#include "cpu/labels.hpp"
#include "cpu/matmul.hpp"
#include "cpu/pack.hpp"
#include "cpu/pack_math.hpp"
#include "cpu/parallel.hpp"
#include "cpu/transpose.hpp"

namespace pb::inline PB_ISA {

// As many rows as stay in the first-level cache between the two passes over them; about 96 where the model fills that cache
// alone, so that it is read from afar less often. Where the next block is fetched meanwhile, two of them stay in a second-level
// cache: long sums gain more than it costs to find their rows there. Numbers of the rows of a chunk are whole cache lines.
inline constexpr RowCut kCpuRowCut{.bytes = 16 << 10,
                                   .block = 64,
                                   .chunk = 256,
                                   .most = 16,
                                   .few = 4,
                                   .sums = 4 << 20,
                                   .tall = 96,
                                   .far = 128 << 10,
                                   .unit = 16};

// The plain loops of a team that is one thread.
struct OneThread {
  template <class F>
  PB_MERGED void for_each(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(i);
  }

  template <class F>
  void for_pairs(Index m, Index n, F&& f) const {
    for (Index i = 0; i < m; ++i) {
      for (Index j = 0; j < n; ++j) f(i, j);
    }
  }

  // Five j at a time, of all i: the end of a loop of a few short turns costs as much as they do.
  template <class F>
  void for_panels(Index m, Index n, F&& f) const {
    constexpr Index wide = 5;
    const Index rest = n % wide;
    for (Index j = 0; j < n - rest; j += wide) {
      for (Index i = 0; i < m; ++i) {
#pragma GCC unroll 5
        for (Index k = 0; k < wide; ++k) f(i, j + k);
      }
    }
    for (Index i = 0; i < m; ++i) {
      for (Index j = n - rest; j < n; ++j) f(i, j);
    }
  }
};

template <class T>
struct Solo : OneThread {
  using Scalar = T;
  using Real = T;
  using Wide = Solo<double>;
  using Lane = Pack<T>;
  template <class E>
  using Series = Vector<E>;
  static constexpr Index kLanes = PackOf<T>::lanes;
  static constexpr int kFewClasses = 5;  // whose scores stay in registers
  static constexpr RowCut kRowCut = kCpuRowCut;
  static constexpr bool kSlotsAreNear = true;

  static Lane load(const T* p) { return load_pack(p); }
  static void store(T* p, Lane x) { store_pack(p, x); }
  static bool vanishes(T x) { return x == 0; }
  static Lane labels(const std::int64_t* p, Index classes) { return pack_labels<T>(p, classes); }

  Wide wide() const { return {}; }

  // Of whole packs; by sums that do not wait for each other.
  static bool all_finite(Index n, const T* x) {
    constexpr int most = 4;
    Lane sums[most] = {};
    Index i = 0;
    for (; i + most * kLanes <= n; i += most * kLanes) {
#pragma GCC unroll 4
      for (int k = 0; k < most; ++k) sums[k] += load(x + i + k * kLanes) - load(x + i + k * kLanes);
    }
    for (; i < n; i += kLanes) sums[0] += load(x + i) - load(x + i);
    return sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3])) == 0;
  }

  template <class E>
  static Vector<E> series(const Batch<E>& batch, Index task) {
    return batch.vector(task);
  }

  static void fetch(Index n, const T* p) {
    for (Index i = 0; i < n; i += kLine<T>) __builtin_prefetch(p + i, 0, 2);
  }

  template <class F>
  void for_lanes(Index n, F&& f) const {
    for (Index i = 0; i < n; i += kLanes) f(i);
  }

  template <int N, class F>
  void reduce(Index n, T (&out)[N], F&& f) const {
    reduce_range<N>(0, n, out, f);
  }

  template <class F>
  void chunks(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(*this, i);
  }

  void row_sums(const Shape& s, Matrix<const T> a, T* out) const { pb::row_sums<T>(s, a, out); }
  void mix(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) const {
    pb::mix<T>(s, a, b, c);
  }
  void dots(const Shape& s, Matrix<const T> a, Matrix<const T> b, const Strided<T>& c) const {
    pb::dots<T>(s, a, b, c);
  }
  void gram(Index n, Index q, Matrix<const T> a, Strided<T> c) const {
    Gram<T>::run(n, q, a, c, 0, Gram<T>::blocks(n));
  }
  void transpose(Index m, Index n, Matrix<const T> a, Matrix<T> b) const { pb::transpose<T>(m, n, a, b); }
  void mix_both(Shape s, Term<const T> first, Term<const T> second, Matrix<T> c) const {
    s.r = std::max(first.r, second.r);
    pb::mix_both<T>(s, first, second, c, PanelTile<T>::fits(s));
  }

  template <int N, class F>
  static void reduce_range(Index begin, Index end, T (&out)[N], F&& f) {
    Lane sums[N] = {};
    for (Index i = begin; i < end; i += kLanes) f(i, sums);
    for (int k = 0; k < N; ++k) out[k] = sum_lanes<T>(sums[k]);
  }
};

template <class T>
struct Crew {
  using Scalar = T;
  using Real = T;
  using Wide = Crew<double>;
  using Lane = Pack<T>;
  template <class E>
  using Series = Vector<E>;
  static constexpr Index kLanes = PackOf<T>::lanes;
  static constexpr RowCut kRowCut = kCpuRowCut;
  static constexpr bool kSlotsAreNear = true;
  static constexpr Index kGrain = 16384;           // elements below which a loop is not worth handing out
  static constexpr Index kMultiplyAdds = 1 << 18;  // the same for a matrix product

  Parallel parallel;

  static Lane load(const T* p) { return load_pack(p); }
  static void store(T* p, Lane x) { store_pack(p, x); }
  static bool vanishes(T x) { return x == 0; }
  static Lane labels(const std::int64_t* p, Index classes) { return pack_labels<T>(p, classes); }

  Wide wide() const { return {parallel}; }

  template <class E>
  static Vector<E> series(const Batch<E>& batch, Index task) {
    return batch.vector(task);
  }

  template <class F>
  void for_each(Index n, F&& f) const {
    split(n, kGrain, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) f(i);
    });
  }

  template <class F>
  void for_pairs(Index m, Index n, F&& f) const {
    split(m, n > 0 ? ceil_div(kGrain, n) : m, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        for (Index j = 0; j < n; ++j) f(i, j);
      }
    });
  }

  template <class F>
  void for_lanes(Index n, F&& f) const {
    split(n, kGrain, [&](Index begin, Index end) {
      for (Index i = begin; i < end; i += kLanes) f(i);
    });
  }

  // The same order as Solo: a reduction is one pass over a state, short beside the products of a step.
  template <int N, class F>
  void reduce(Index n, T (&out)[N], F&& f) const {
    Solo<T>::template reduce_range<N>(0, n, out, f);
  }

  template <class F>
  void chunks(Index n, F&& f) const {
    const Solo<T> member;
    parallel(n, [&](Index i) { f(member, i); });
  }

  void row_sums(Shape s, Matrix<const T> a, T* out) const { pb::row_sums<T>(s, a, out); }

  void mix(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) const {
    if (mix_packs<T>(s, b)) return mix_blocks(s, a, b, c);
    const Index grain = s.p * s.q * s.r < kMultiplyAdds ? s.p : MixTile<T>::kRows;
    split(s.p, grain, [&](Index begin, Index end) {
      pb::mix<T>({end - begin, s.q, s.r, s.accumulate}, {a.data + begin * a.row, a.row, a.column}, b,
                 {c[begin], c.row});
    });
  }

  void mix_both(Shape s, Term<const T> first, Term<const T> second, Matrix<T> c) const {
    s.r = std::max(first.r, second.r);
    const bool together = PanelTile<T>::fits(s);  // of the whole product: not of how it is shared out
    const Index grain = s.p * s.q * s.r < kMultiplyAdds ? s.p : MixTile<T>::kRows;
    split(s.p, grain, [&](Index begin, Index end) {
      const auto from = [begin](Term<const T> term) {
        term.a.data += begin * term.a.row;
        return term;
      };
      Shape part = s;
      part.p = end - begin;
      pb::mix_both<T>(part, from(first), from(second), {c[begin], c.row}, together);
    });
  }

  void transpose(Index m, Index n, Matrix<const T> a, Matrix<T> b) const {
    const Index grain = round_up(ceil_div(kGrain, n), kLanes);
    split(m, grain, [&](Index begin, Index end) {
      pb::transpose<T>(end - begin, n, {a[begin], a.row}, {b.data + begin, b.row});
    });
  }

  void dots(Shape s, Matrix<const T> a, Matrix<const T> b, Strided<T> c) const {
    const Index grain = s.p * s.q * s.r < kMultiplyAdds ? s.r : round_up(ceil_div(s.r, 16), kLanes);
    split(s.r, grain, [&](Index begin, Index end) {
      pb::dots<T>({s.p, s.q, end - begin, s.accumulate}, a, {b[begin], b.row},
                  {c.data + begin * c.column, c.row, c.column});
    });
  }

  void gram(Index n, Index q, Matrix<const T> a, Strided<T> c) const {
    const Index blocks = Gram<T>::blocks(n), grain = n * n * q < kMultiplyAdds ? blocks : 1;
    split(blocks, grain, [&](Index begin, Index end) { Gram<T>::run(n, q, a, c, begin, end); });
  }

 private:
  // In blocks of rows that are worth a panel of B, each some panels wide, row by row of blocks: whole rows stay with a thread,
  // as in for_lanes.
  void mix_blocks(Shape s, Strided<const T> a, Matrix<const T> b, Matrix<T> c) const {
    constexpr Index high = 64, wide = 4 * PackedTile<T>::kColumns;
    const bool whole = s.p * s.q * s.r < kMultiplyAdds;
    const Index rows = whole ? s.p : ceil_div(s.p, ceil_div(s.p, high)),
                across = whole ? 1 : ceil_div(s.q, wide),
                columns = round_up(ceil_div(s.q, across), PackedTile<T>::kColumns);
    const auto run = [&](Index i) {
      const Index p = i / across * rows, q = i % across * columns;
      pb::mix_packed<T>({std::min(rows, s.p - p), std::min(columns, s.q - q), s.r, s.accumulate},
                        {a.data + p * a.row, a.row, a.column}, {b.data + q, b.row}, {c[p] + q, c.row});
    };
    if (whole) return run(0);
    parallel(ceil_div(s.p, rows) * across, [&](Index i) { run(i); });
  }

  template <class F>
  void split(Index n, Index grain, F&& f) const {
    const Index parts = grain > 0 ? ceil_div(n, grain) : 1;
    if (parts <= 1) return f(Index{0}, n);
    parallel(parts, [&](Index i) { f(i * grain, i * grain + grain < n ? i * grain + grain : n); });
  }
};

}  // namespace pb::inline PB_ISA
