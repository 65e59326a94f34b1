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

// A half of every scalar of Lanes, as a team of its own that works in registers.
template <class T>
struct LanePack {
  using Real = T;
  using Scalar = Pack<T>;
  using Lane = Pack<T>;
  static constexpr Index kLanes = 1;
  static constexpr int kFewClasses = 5;                       // whose scores stay in registers
  static constexpr int kRows = kPackRegisters >= 32 ? 5 : 2;  // of a product with five columns

  static Lane load(const Scalar* p) { return *p; }
  static void store(Scalar* p, Lane x) { *p = x; }

  // sum[p][q] = sum_r A(p, r) B(r, q), r < terms, one or more of them: an Index, or a constant.
  template <int P, int Q, class Count>
  PB_INLINE static void product(Count terms, Strided<const Lane> a, Strided<const Lane> b,
                                Lane (&sum)[P][Q]) {
    constexpr std::integral_constant<int, P> rows;
    constexpr std::integral_constant<int, Q> columns;
    each(rows, [&](Index p) PB_MERGED {
      const Lane x = in_register<T>(a.data[p * a.row]);
      each(columns, [&](Index q) PB_MERGED { sum[p][q] = x * b.data[q * b.column]; });
    });
    for (Index r = 1; r < terms; ++r) {
      each(rows, [&](Index p) PB_MERGED {
        const Lane x = in_register<T>(a.data[p * a.row + r * a.column]);
        each(columns, [&](Index q) PB_MERGED {
          sum[p][q] = multiply_add<T>(x, b.data[r * b.row + q * b.column], sum[p][q]);
        });
      });
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
  static constexpr int kFewClasses = LanePack<T>::kFewClasses;

  // A scalar is kParts of those; where an array of them is seen as one of parts.
  using Part = LanePack<T>;
  static constexpr Index kParts = 2;
  static Pack<T>* parts(Scalar* p) { return reinterpret_cast<Pack<T>*>(p); }
  static const Pack<T>* parts(const Scalar* p) { return reinterpret_cast<const Pack<T>*>(p); }

  Index count;  // tasks, 1 .. kTasks

  explicit Lanes(Index tasks) : count(tasks) {}

  static Lane load(const Scalar* p) { return *p; }
  static void store(Scalar* p, Lane x) { *p = x; }

  // A number of each task.
  static Scalar gather(const T (&x)[kTasks]) { return {load_pack(x), load_pack(x + kTasks / 2)}; }

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
    constexpr int rows = Part::kRows, columns = 5;
    for (Index p = 0; p < s.p; p += rows) {
      for (Index q = 0; q < s.q; q += columns) {
        with_constant<rows>(s.p - p < rows ? s.p - p : rows, [&](auto P) {
          with_constant<columns>(s.q - q < columns ? s.q - q : columns, [&](auto Q) {
            mix_tile(P, Q, s, {a.data + p * a.row, a.row, a.column}, {b.data + q, b.row}, {c[p] + q, c.row});
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

 private:
  template <int P, int Q>
  static void mix_tile(std::integral_constant<int, P> rows, std::integral_constant<int, Q> columns, Shape s,
                       Strided<const Scalar> a, Matrix<const Scalar> b, Matrix<Scalar> c) {
    for (Index part = 0; part < kParts; ++part) {
      Pack<T> sum[P][Q];
      Part::product(s.r, {parts(a.data) + part, a.row * kParts, a.column * kParts},
                    {parts(b.data) + part, b.row * kParts, kParts}, sum);
      each(rows, [&](Index i) PB_MERGED {
        each(columns, [&](Index j) PB_MERGED {
          Pack<T>& to = c[i][j].pack[part];
          to = s.accumulate ? to + sum[i][j] : sum[i][j];
        });
      });
    }
  }
};

}  // namespace pb::inline PB_ISA
