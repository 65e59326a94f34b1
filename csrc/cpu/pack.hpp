// A SIMD pack: kLanes scalars of one register, with the elementary functions that the row losses need.
#pragma once

#ifdef __FMA__
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/portable.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // packs never cross a library boundary

namespace pb::inline PB_ISA {

inline constexpr int kPackBytes = 32;

template <class T>
struct PackOf {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef T type __attribute__((vector_size(kPackBytes)));
  typedef T unaligned __attribute__((vector_size(kPackBytes), aligned(sizeof(T)), may_alias));
  typedef Bits bits __attribute__((vector_size(kPackBytes)));
  static constexpr int lanes = kPackBytes / sizeof(T);
};

template <class T>
using Pack = typename PackOf<T>::type;

template <class T>
inline Pack<T> load_pack(const T* p) {
  return *reinterpret_cast<const typename PackOf<T>::unaligned*>(p);
}

template <class T>
inline void store_pack(T* p, Pack<T> x) {
  *reinterpret_cast<typename PackOf<T>::unaligned*>(p) = x;
}

// The first `count` scalars, zeros behind.
template <class T>
inline Pack<T> load_part(const T* p, Index count) {
  alignas(kPackBytes) T buffer[PackOf<T>::lanes] = {};
  for (Index i = 0; i < count; ++i) buffer[i] = p[i];
  return load_pack(buffer);
}

template <class T>
inline void store_part(T* p, Pack<T> x, Index count) {
  for (Index i = 0; i < count; ++i) p[i] = x[i];
}

// Lane j of the result is the sum of the lanes of x[j]: a transposition and a sum in one, log2(lanes) rounds of
// pairwise additions.
template <class T>
inline Pack<T> sum_each(const Pack<T> (&x)[PackOf<T>::lanes]) {
  using Bits = typename PackOf<T>::bits;
  if constexpr (sizeof(T) == 4) {
    Pack<T> two[4], four[2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {  // (x[j], x[j + 4]): halves added
      two[j] = __builtin_shuffle(x[j], x[j + 4], Bits{0, 1, 2, 3, 8, 9, 10, 11}) +
               __builtin_shuffle(x[j], x[j + 4], Bits{4, 5, 6, 7, 12, 13, 14, 15});
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {  // quarters added, j and j + 2 interleaved
      four[j] = __builtin_shuffle(two[j], two[j + 2], Bits{0, 1, 8, 9, 4, 5, 12, 13}) +
                __builtin_shuffle(two[j], two[j + 2], Bits{2, 3, 10, 11, 6, 7, 14, 15});
    }
    return __builtin_shuffle(four[0], four[1], Bits{0, 8, 2, 10, 4, 12, 6, 14}) +
           __builtin_shuffle(four[0], four[1], Bits{1, 9, 3, 11, 5, 13, 7, 15});
  } else {
    Pack<T> two[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      two[j] = __builtin_shuffle(x[j], x[j + 2], Bits{0, 1, 4, 5}) +
               __builtin_shuffle(x[j], x[j + 2], Bits{2, 3, 6, 7});
    }
    return __builtin_shuffle(two[0], two[1], Bits{0, 4, 2, 6}) +
           __builtin_shuffle(two[0], two[1], Bits{1, 5, 3, 7});
  }
}

template <class T>
inline Pack<T> broadcast(T x) {
  return x - Pack<T>{};  // x + 0 is not x where x is -0
}

// a b + c, rounded once where the machine can. Nothing else is contracted (CMakeLists.txt says why).
template <class T>
inline Pack<T> multiply_add(Pack<T> a, Pack<T> b, Pack<T> c) {
#ifdef __FMA__
  if constexpr (sizeof(T) == 4) {
    return _mm256_fmadd_ps(a, b, c);
  } else {
    return _mm256_fmadd_pd(a, b, c);
  }
#else
  return a * b + c;
#endif
}

// Sum of the lanes: a fixed tree.
template <class T>
inline T sum_lanes(Pack<T> x) {
  if constexpr (sizeof(T) == 4) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
  } else {
    return (x[0] + x[2]) + (x[1] + x[3]);
  }
}

template <class V>
  requires(!std::is_arithmetic_v<V>)
inline V larger(V a, V b) {
  return a > b ? a : b;
}

// exp on a pack: Cody-Waite reduction x = k ln 2 + r, Taylor polynomial on |r| <= ln(2)/2 (relative truncation 6e-9 in
// single and 2e-18 in double precision), scaling by 2^k in the exponent bits. Measured: at most 1.5 ulp.
// Below the normal range the result is 0; NaN stays NaN.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float magic = 12582912.0f, low = -87.0f, high = 88.3f;
  static constexpr float ln2_head = 0.693359375f, ln2_tail = -2.12194440e-4f;
  static constexpr int degree = 7, mantissa = 23, bias = 127;
};
template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0, low = -708.0, high = 709.4;
  static constexpr double ln2_head = 6.93145751953125e-1, ln2_tail = 1.42860682030941723212e-6;
  static constexpr int degree = 13, mantissa = 52, bias = 1023;
};

constexpr double factorial(int n) { return n < 2 ? 1.0 : n * factorial(n - 1); }

template <class T>
inline Pack<T> exp_pack(Pack<T> x) {
  using C = ExpConstants<T>;
  using Bits = typename PackOf<T>::bits;
  const Pack<T> low = broadcast(C::low), high = broadcast(C::high), magic = broadcast(C::magic);
  const Pack<T> inside = x < low ? low : (x > high ? high : x);  // keeps NaN
  const Pack<T> shifted = multiply_add<T>(inside, broadcast(T(1.4426950408889634)), magic);
  const Pack<T> k = shifted - magic;
  const Pack<T> high_part = multiply_add<T>(k, broadcast(-C::ln2_head), inside);
  const Pack<T> r = multiply_add<T>(k, broadcast(-C::ln2_tail), high_part);
  Pack<T> sum = broadcast(T(1.0 / factorial(C::degree)));
#pragma GCC unroll 16
  for (int i = C::degree - 1; i >= 0; --i) sum = multiply_add<T>(sum, r, broadcast(T(1.0 / factorial(i))));
  const Bits exponent = (std::bit_cast<Bits>(shifted) - std::bit_cast<Bits>(magic) + C::bias) << C::mantissa;
  const Pack<T> result = sum * std::bit_cast<Pack<T>>(exponent);
  return x < low ? Pack<T>{} : result;
}

inline Pack<float> exponential(Pack<float> x) { return exp_pack<float>(x); }
inline Pack<double> exponential(Pack<double> x) { return exp_pack<double>(x); }

template <class T>
inline Pack<T> log_pack(Pack<T> x) {
  Pack<T> y;
  for (int i = 0; i < PackOf<T>::lanes; ++i) y[i] = std::log(x[i]);
  return y;
}

inline Pack<float> logarithm(Pack<float> x) { return log_pack<float>(x); }
inline Pack<double> logarithm(Pack<double> x) { return log_pack<double>(x); }

}  // namespace pb::inline PB_ISA
