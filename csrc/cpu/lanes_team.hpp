// The CPU team of tasks too small to fill a pack with their rows: one thread, a task per SIMD lane. A scalar is a pack
// with the numbers of kTasks tasks, so the mathematics of one task runs on all of them, step by step the same.
#pragma once

#include "cpu/team.hpp"

namespace pb::inline PB_ISA {

// Element [step] of consecutive tasks as one pack.
template <class E>
class LaneSeries {
 public:
  using T = std::remove_const_t<E>;

  LaneSeries(const Batch<E>& batch, Index first, Index count)
      : data_(batch.data ? batch.data + first * batch.task : nullptr),
        task_(batch.task),
        step_(batch.row),
        count_(count) {}

  explicit operator bool() const { return data_ != nullptr; }

  // Lanes beyond the last task repeat it.
  Pack<T> operator[](Index step) const {
    if (task_ == 0) return broadcast<T>(data_[step * step_]);
    Pack<T> x;
    for (Index i = 0; i < PackOf<T>::lanes; ++i)
      x[i] = data_[(i < count_ ? i : count_ - 1) * task_ + step * step_];
    return x;
  }

  void set(Index step, Pack<T> x) const {
    for (Index i = 0; i < count_; ++i) data_[i * task_ + step * step_] = x[i];
  }

 private:
  E* data_;
  Index task_, step_, count_;
};

// C[p, q] (+)= sum_r A(p, r) B[r, q] on packs: P x Q of them in registers.
template <class T>
struct PackTile {
  static constexpr int kRows = kPackRegisters >= 32 ? 5 : 2, kColumns = 5;

  template <int P, int Q>
  static void run(Index count, Strided<const Pack<T>> a, Matrix<const Pack<T>> b, Matrix<Pack<T>> c,
                  bool accumulate) {
    Pack<T> sum[P][Q] = {};
    for (Index r = 0; r < count; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const Pack<T> x = a.data[i * a.row + r * a.column];
#pragma GCC unroll 8
        for (int j = 0; j < Q; ++j) sum[i][j] = multiply_add<T>(x, b[r][j], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) c[i][j] = accumulate ? c[i][j] + sum[i][j] : sum[i][j];
    }
  }
};

template <class T>
struct Lanes : OneThread {
  using Real = T;
  using Scalar = Pack<T>;
  using Lane = Pack<T>;
  using Member = Solo<T>;
  template <class E>
  using Series = LaneSeries<E>;
  static constexpr Index kLanes = 1, kTasks = PackOf<T>::lanes;

  Index count;  // tasks in the pack, 1 .. kTasks

  explicit Lanes(Index tasks) : count(tasks) {}

  static Lane load(const Scalar* p) { return *p; }
  static void store(Scalar* p, Lane x) { *p = x; }

  // p[0 .. n) will be read soon.
  static void fetch(Index n, const Scalar* p) {
    for (Index i = 0; i < n; i += 64 / kPackBytes) __builtin_prefetch(p + i);
  }

  static bool vanishes(Scalar x) {
    for (Index i = 0; i < kTasks; ++i) {
      if (x[i] != 0) return false;
    }
    return true;
  }

  template <class E>
  LaneSeries<E> series(const Batch<E>& batch, Index first) const {
    return {batch, first, count};
  }

  template <class F>
  void for_lanes(Index n, F&& f) const {
    for_each(n, f);
  }

  template <int N, class F>
  void reduce(Index n, Scalar (&out)[N], F&& f) const {
    for (int k = 0; k < N; ++k) out[k] = Scalar{};
    for (Index i = 0; i < n; ++i) f(i, out);
  }

  template <class F>
  void chunks(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(*this, i);
  }

  void mix(Shape s, Strided<const Scalar> a, Matrix<const Scalar> b, Matrix<Scalar> c) const {
    using Tile = PackTile<T>;
    for (Index p = 0; p < s.p; p += Tile::kRows) {
      for (Index q = 0; q < s.q; q += Tile::kColumns) {
        with_constant<Tile::kRows>(s.p - p < Tile::kRows ? s.p - p : Tile::kRows, [&](auto P) {
          with_constant<Tile::kColumns>(s.q - q < Tile::kColumns ? s.q - q : Tile::kColumns, [&](auto Q) {
            Tile::template run<decltype(P)::value, decltype(Q)::value>(
                s.r, {a.data + p * a.row, a.row, a.column}, {b.data + q, b.row}, {c[p] + q, c.row},
                s.accumulate);
          });
        });
      }
    }
  }

  void row_sums(Shape s, Matrix<const Scalar> a, Scalar* out) const {
    for (Index p = 0; p < s.p; ++p) {
      Scalar sum = s.accumulate ? out[p] : Scalar{};
      for (Index q = 0; q < s.q; ++q) sum += a[p][q];
      out[p] = sum;
    }
  }
};

}  // namespace pb::inline PB_ISA
