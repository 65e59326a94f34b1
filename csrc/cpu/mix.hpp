// Rows of B scaled and added, C[p, q] (+)= sum_r A(p, r) B[r, q], on one CPU thread: packs along q, tiled over registers.
//
// Skinny shapes (a handful of classes against rows of features) are what a general GEMM is bad at: here the few rows
// stay in registers while the long dimension streams. Every output is summed in one fixed order, whatever the tiling.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/constant.hpp"
#include "core/team.hpp"
#include "cpu/pack.hpp"
#include "cpu/packed.hpp"
#include "cpu/thin.hpp"

namespace pb::inline PB_ISA {

template <class T>
struct MixTile {
  static constexpr int kRows = kPackRegisters >= 32 ? 5 : 6, kPacks = 2;
  static constexpr int kWide = kPackRegisters >= 32 ? 3 : 2;  // packs of the last tile, where sums are kLong
  static constexpr Index kLong = 16;

  // Of a Shape, what becomes of the sums.
  struct Ends {
    bool accumulate, stream;
  };

  // P rows by Q packs of C, the last pack of which holds `part` scalars (kLanes: whole). Meanwhile the cache lines from `ahead`
  // on are fetched, `line` scalars apart, one a row of B: all at once, they would be waited for.
  template <int P, int Q>
  PB_INLINE static void run(Index r_count, Strided<const T> a, Matrix<const T> b, Matrix<T> c, Ends ends,
                            Index part, const T* ahead, Index line) {
    constexpr Index lanes = PackOf<T>::lanes;
    const bool whole = part == lanes;
    Pack<T> sum[P][Q] = {};
    const T* b_row = b.data;
    if (whole) {
      for (Index r = 0; r < r_count; ++r, b_row += b.row, ahead += line) {
        __builtin_prefetch(ahead, 0, 2);  // into the second-level cache: the first one is in use
        Pack<T> packs[Q];
#pragma GCC unroll 8
        for (int j = 0; j < Q; ++j) packs[j] = load_pack(b_row + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < P; ++i) {
          const Pack<T> coefficient = in_register<T>(broadcast(a.data[i * a.row + r * a.column]));
#pragma GCC unroll 8
          for (int j = 0; j < Q; ++j) sum[i][j] = multiply_add<T>(coefficient, packs[j], sum[i][j]);
        }
      }
    } else {
      for (Index r = 0; r < r_count; ++r, b_row += b.row) {
        for (int j = 0; j < Q; ++j) {
          const Pack<T> pack = j + 1 < Q ? load_pack(b_row + j * lanes) : load_part(b_row + j * lanes, part);
          for (int i = 0; i < P; ++i) {
            sum[i][j] = multiply_add<T>(broadcast(a.data[i * a.row + r * a.column]), pack, sum[i][j]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) {
        T* const out = c[i] + j * lanes;
        if (!whole && j + 1 == Q) {
          store_part(out, ends.accumulate ? load_part(out, part) + sum[i][j] : sum[i][j], part);
        } else if (ends.stream) {
          stream_pack(out, sum[i][j]);
        } else {
          store_pack(out, ends.accumulate ? load_pack(out) + sum[i][j] : sum[i][j]);
        }
      }
    }
  }

  // The columns of C from `done` on, by kPacks; in long sums the last three packs together, since a tile of one waits for its
  // own sums. `ahead`, `line`: see run().
  template <int P>
  static void row_block(const Shape& s, Ends ends, Index done, const Strided<const T>& a, Matrix<const T> b,
                        Matrix<T> c, const T* ahead, Index line) {
    constexpr Index lanes = PackOf<T>::lanes;
    const Index depth = s.r, wide = depth < kLong ? kPacks : kWide, part = (s.q - done) % lanes;
    const Index whole = s.q - part;
    Index q = done;
    for (; q + wide * lanes < whole; q += kPacks * lanes, ahead += depth * line)
      run<P, kPacks>(depth, a, {b.data + q, b.row}, {c.data + q, c.row}, ends, lanes, ahead, line);
    with_constant<kWide>((whole - q) / lanes, [&](auto packs) {
      run<P, decltype(packs)::value>(depth, a, {b.data + q, b.row}, {c.data + q, c.row}, ends, lanes, ahead,
                                     line);
    });
    if (part > 0)
      run<P, 1>(depth, a, {b.data + whole, b.row}, {c.data + whole, c.row}, ends, part, ahead, line);
  }

  // Whether every whole pack of C may bypass the caches.
  static bool can_stream(const Shape& s, Matrix<T> c) {
    const auto address = reinterpret_cast<std::uintptr_t>(c.data);
    return s.stream && !s.accumulate && address % kPackBytes == 0 && c.row % PackOf<T>::lanes == 0;
  }
};

// Where there are 16 registers: three packs of four rows at once, or four or five of two, so that no tile is one pack wide and
// waits for its own sums. B is read anew for every few rows of C, and has to be in the first-level cache.
template <class T>
struct PanelTile {
  static constexpr Index kLanes = PackOf<T>::lanes, kLeast = 3;  // packs of a row
  static constexpr Index kLongest = 128;                         // rows of B

  // Packs of the next panel of so many.
  static constexpr Index width(Index rest) {
    return rest == 5 || rest == 8 ? 5 : rest == 4 || rest == 7 ? 4 : 3;
  }
  // Rows that are made at once of a panel of so many packs.
  static constexpr int height(int packs) { return packs == 3 ? 4 : 2; }

  static bool fits(const Shape& s) {
    const bool hinted = s.stream || s.ahead != 0, one_block = s.p == 5 || s.p == 6;  // of a MixTile
    return kPackRegisters < 32 && !hinted && !one_block && s.r > 0 && s.r <= kLongest &&
           s.q >= kLeast * kLanes;
  }

  // P rows by Q packs of C, from row p and column q on: the sum of all terms.
  template <int P, int Q>
  PB_NOINLINE static void run(const Term<const T>* terms, int count, Index p, Index q, T* c, Index c_row,
                              bool accumulate) {
    Pack<T> sum[P][Q] = {};
    for (const Term<const T>* term = terms; term != terms + count; ++term) {
      const T *a = term->a.data + p * term->a.row, *b = term->b.data + q;
      const Index row = term->a.row, next_a = term->a.column, next_b = term->b.row;
      const auto next = [&] {
        add<P, Q>(a, row, b, sum);
        a += next_a, b += next_b;
      };
      Index r = term->r;
      for (; Q > 3 && r > 1; r -= 2) {  // short sums of few rows wait for the end of a loop
        next();
        asm("" : "+r"(a), "+r"(b));  // or the compiler finds addresses of its own, and spills sums
        next();
      }
      for (; r > 0; --r) next();
    }
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i, c += c_row) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) {
        T* const out = c + j * kLanes;
        store_pack(out, accumulate ? load_pack(out) + sum[i][j] : sum[i][j]);
      }
    }
  }

  // sum += a b: a column of A by a row of B, of which registers hold the one with fewer packs.
  template <int P, int Q>
  PB_INLINE static void add(const T* a, Index row, const T* b, Pack<T> (&sum)[P][Q]) {
    if constexpr (Q == 3) {
      Pack<T> packs[Q];
#pragma GCC unroll 4
      for (int j = 0; j < Q; ++j) packs[j] = in_register<T>(load_pack(b + j * kLanes));
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        const Pack<T> coefficient = in_register<T>(broadcast(a[i * row]));
#pragma GCC unroll 4
        for (int j = 0; j < Q; ++j) sum[i][j] = multiply_add<T>(coefficient, packs[j], sum[i][j]);
      }
    } else {
      Pack<T> coefficients[P];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) coefficients[i] = in_register<T>(broadcast(a[i * row]));
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) {
        const Pack<T> pack = in_register<T>(load_pack(b + j * kLanes));
#pragma GCC unroll 4
        for (int i = 0; i < P; ++i) sum[i][j] = multiply_add<T>(coefficients[i], pack, sum[i][j]);
      }
    }
  }

  // In blocks of about even heights.
  template <int Q>
  static void panel(const Term<const T>* terms, int count, Index rows, Index q, Matrix<T> c,
                    bool accumulate) {
    constexpr int most = height(Q);
    for (Index p = 0; p < rows;) {
      const Index taken = next_part(rows - p, most);
      with_constant<most>(taken, [&](auto P) {
        run<decltype(P)::value, Q>(terms, count, p, q, c[p] + q, c.row, accumulate);
      });
      p += taken;
    }
  }

  // The whole packs of C; returns the number of its columns that they are.
  static Index run_all(const Shape& s, const Term<const T>* terms, int count, Matrix<T> c) {
    const Index whole = s.q / kLanes;
    for (Index done = 0; done < whole;) {
      const Index packs = width(whole - done), q = done * kLanes;
      packs == 5   ? panel<5>(terms, count, s.p, q, c, s.accumulate)
      : packs == 4 ? panel<4>(terms, count, s.p, q, c, s.accumulate)
                   : panel<3>(terms, count, s.p, q, c, s.accumulate);
      done += packs;
    }
    return whole * kLanes;
  }
};

// The columns of C from `done` on, rows in blocks of about even heights: a low one would wait for its sums. Each fetches its
// part of what is read after B.
template <class T>
inline void mix_rows(const Shape& s, Index done, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) {
  using Tile = MixTile<T>;
  const typename Tile::Ends ends{s.accumulate, Tile::can_stream(s, {c.data + done, c.row})};
  const Index blocks = ceil_div(s.p, Tile::kRows), line = s.ahead != 0 ? kLine<T> / blocks : 0;
  const T* ahead = b.data + done + s.ahead;
  for (Index p = 0; p < s.p; ahead += s.r * (s.q - done) / kLine<T> * line) {
    const Index rows = next_part(s.p - p, Tile::kRows);
    with_constant<Tile::kRows>(rows, [&](auto P) {
      Tile::template row_block<decltype(P)::value>(s, ends, done, {a.data + p * a.row, a.row, a.column}, b,
                                                   {c[p], c.row}, ahead, line);
    });
    p += rows;
  }
}

// In the fastest way, by whole packs in panels or in rows: all make the same sums. What is larger than two registers is passed
// by reference, here and below: a copy of what was just written in parts waits until it is in the cache.
template <class T>
inline void mix(const Shape& s, const Strided<const T>& a, Matrix<const T> b, Matrix<T> c) {
  if (mix_packs<T>(s, b)) return mix_packed<T>(s, a, b, c);
  Index done = 0;
  if (fits_thin<T>(s)) {
    done = mix_thin<T>(s, a, b, c, MixTile<T>::can_stream(s, c));
  } else if (PanelTile<T>::fits(s)) {
    const Term<const T> term{s.r, a, b};
    done = PanelTile<T>::run_all(s, &term, 1, c);
  }
  if (done < s.q) mix_rows<T>(s, done, a, b, c);
}

// mix of two terms at once; `together` says whether both are summed before C is added, which decides about rounding.
template <class T>
inline void mix_both(Shape s, Term<const T> first, Term<const T> second, Matrix<T> c, bool together) {
  Index done = 0;
  if (together) {
    const Term<const T> terms[]{first, second};
    done = PanelTile<T>::run_all(s, terms, 2, c);
  }
  if (done == s.q) return;
  for (const Term<const T>& term : {first, second}) {
    s.r = term.r;
    mix_rows<T>(s, done, term.a, term.b, c);
    s.accumulate = true;
  }
}

}  // namespace pb::inline PB_ISA
