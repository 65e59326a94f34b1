// The CPU team of tasks too small to fill a pack with their rows: one thread, a task per SIMD lane. A scalar is two packs
// with the numbers of kTasks tasks, so the mathematics of one task runs on all of them, step by step the same.
#pragma once

#include "cpu/team.hpp"
#include "cpu/twin.hpp"

namespace pb::inline PB_ISA {

// Element [step] of consecutive tasks as one scalar.
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
  Twin<T> operator[](Index step) const {
    const E* const data = data_ + step * step_;
    if (task_ == 0) return {broadcast<T>(*data), broadcast<T>(*data)};
    Twin<T> x;
    for (Index i = 0; i < Twin<T>::lanes; ++i) x.set_lane(i, data[(i < count_ ? i : count_ - 1) * task_]);
    return x;
  }

  void set(Index step, Twin<T> x) const {
    for (Index i = 0; i < count_; ++i) data_[i * task_ + step * step_] = x.lane(i);
  }

 private:
  E* data_;
  Index task_, step_, count_;
};

// C[p, q] (+)= sum_r A(p, r) B[r, q] on one half of every scalar: P x Q packs in registers.
template <class T>
struct LaneTile {
  static constexpr int kRows = kPackRegisters >= 32 ? 5 : 2, kColumns = 5;

  template <int P, int Q>
  PB_INLINE static void run(int half, Index count, Strided<const Twin<T>> a, Matrix<const Twin<T>> b,
                            Matrix<Twin<T>> c, bool accumulate) {
    Pack<T> sum[P][Q] = {};
    for (Index r = 0; r < count; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const Pack<T> x = a.data[i * a.row + r * a.column].pack[half];
#pragma GCC unroll 8
        for (int j = 0; j < Q; ++j) sum[i][j] = multiply_add<T>(x, b[r][j].pack[half], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Q; ++j) {
        Pack<T>& to = c[i][j].pack[half];
        to = accumulate ? to + sum[i][j] : sum[i][j];
      }
    }
  }
};

template <class T>
struct Lanes : OneThread {
  using Real = T;
  using Scalar = Twin<T>;
  using Lane = Twin<T>;
  using Member = Solo<T>;
  template <class E>
  using Series = LaneSeries<E>;
  static constexpr Index kLanes = 1, kTasks = Twin<T>::lanes;
  static constexpr bool kSlotsAreNear = true;
  static constexpr int kFewClasses = 5;  // whose scores stay in registers

  Index count;  // tasks, 1 .. kTasks

  explicit Lanes(Index tasks) : count(tasks) {}

  static Lane load(const Scalar* p) { return *p; }
  static void store(Scalar* p, Lane x) { *p = x; }

  // p[0 .. n) will be read soon.
  static void fetch(Index n, const Scalar* p) {
#pragma GCC unroll 4
    for (Index i = 0; i < n; ++i) __builtin_prefetch(p + i);  // a cache line each
  }

  static bool vanishes(Scalar x) {
    for (Index i = 0; i < kTasks; ++i) {
      if (x.lane(i) != 0) return false;
    }
    return true;
  }

  template <class E>
  LaneSeries<E> series(const Batch<E>& batch, Index first) const {
    return {batch, first, count};
  }

  template <class F>
  PB_MERGED void for_lanes(Index n, F&& f) const {
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
    using Tile = LaneTile<T>;
    for (Index p = 0; p < s.p; p += Tile::kRows) {
      for (Index q = 0; q < s.q; q += Tile::kColumns) {
        with_constant<Tile::kRows>(s.p - p < Tile::kRows ? s.p - p : Tile::kRows, [&](auto P) {
          with_constant<Tile::kColumns>(s.q - q < Tile::kColumns ? s.q - q : Tile::kColumns, [&](auto Q) {
            for (int half = 0; half < 2; ++half) {
              Tile::template run<decltype(P)::value, decltype(Q)::value>(
                  half, s.r, {a.data + p * a.row, a.row, a.column}, {b.data + q, b.row}, {c[p] + q, c.row},
                  s.accumulate);
            }
          });
        });
      }
    }
  }

  // Several rows at a time, whose sums do not wait for each other.
  void row_sums(Shape s, Matrix<const Scalar> a, Scalar* out) const {
    constexpr int most = 5;
    for (Index p = 0; p < s.p; p += most) {
      with_constant<most>(s.p - p < most ? s.p - p : most, [&](auto rows) {
        constexpr int count = decltype(rows)::value;
        Scalar sum[count] = {};
        const Scalar* const first = a[p];
        for (Index q = 0; q < s.q; ++q) {
#pragma GCC unroll 8
          for (int i = 0; i < count; ++i) sum[i] += first[i * a.row + q];
        }
#pragma GCC unroll 8
        for (int i = 0; i < count; ++i) out[p + i] = s.accumulate ? out[p + i] + sum[i] : sum[i];
      });
    }
  }
};

}  // namespace pb::inline PB_ISA
