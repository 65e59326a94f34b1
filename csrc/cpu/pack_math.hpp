// The elementary functions of core/math.hpp on a SIMD pack.
#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>

#include "cpu/pack.hpp"

namespace pb::inline PB_ISA {

// Rounded correctly, as for one scalar.
template <class V>
  requires(!std::is_arithmetic_v<V>)
inline V square_root(V x) {
#ifdef __AVX__
  if constexpr (std::is_same_v<V, Pack<float>>) {
    return _mm256_sqrt_ps(x);
  } else {
    return _mm256_sqrt_pd(x);
  }
#else
  for (std::size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// exp on a pack: Cody-Waite reduction x = k ln 2 + r, a polynomial on |r| <= ln(2)/2 (1 + r and the terms whose largest
// relative error is least: 3e-9 in single and 4e-18 in double precision), scaling by 2^k in the exponent bits. Measured: at
// most 1.5 ulp. Below the normal range the result is 0; NaN stays NaN.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float magic = 12582912.0f, low = -87.0f, high = 88.3f;
  static constexpr float ln2 = 0.69314718f, ln2_head = 0.693359375f, ln2_tail = -2.12194440e-4f;
  static constexpr int terms = 5, mantissa = 23, bias = 127;
  static constexpr float polynomial[] = {1.0f,
                                         1.0f,
                                         0.49999993442154368296f,
                                         0.16666520547899475614f,
                                         0.041668389031667860275f,
                                         0.00836872705088134569f,
                                         0.0013814577579428480551f};
};
template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0, low = -708.0, high = 709.4;
  static constexpr double ln2 = 0.69314718055994531, ln2_head = 6.93145751953125e-1,
                          ln2_tail = 1.42860682030941723212e-6;
  static constexpr int terms = 11, mantissa = 52, bias = 1023;
  static constexpr double polynomial[] = {1.0,
                                          1.0,
                                          0.50000000000000106421,
                                          0.16666666666666412156,
                                          0.041666666666530003815,
                                          0.0083333333334946482641,
                                          0.0013888888943676831878,
                                          0.00019841269506286471702,
                                          0.000024801493045178232372,
                                          2.7557586530956971636e-6,
                                          2.7630269217117669397e-7,
                                          2.5000045485889084529e-8};
};
template <class T>
inline constexpr int kExpDegree = std::size(ExpConstants<T>::polynomial) - 1;

template <class T>
PB_INLINE Pack<T> exp_pack(Pack<T> x) {
  using C = ExpConstants<T>;
  using Bits = typename PackOf<T>::bits;
  const Pack<T> low = broadcast(C::low), high = broadcast(C::high), magic = broadcast(C::magic);
  const Pack<T> above = low > x ? low : x, inside = high < above ? high : above;  // keeps NaN
  const Pack<T> shifted = multiply_add<T>(inside, broadcast(T(1.4426950408889634)), magic);
  const Pack<T> k = shifted - magic;
  const Pack<T> high_part = multiply_add<T>(k, broadcast(-C::ln2_head), inside);
  const Pack<T> r = multiply_add<T>(k, broadcast(-C::ln2_tail), high_part);
  Pack<T> sum = broadcast(C::polynomial[kExpDegree<T>]);
#pragma GCC unroll 16
  for (int i = kExpDegree<T> - 1; i >= 0; --i) sum = multiply_add<T>(sum, r, broadcast(C::polynomial[i]));
  const Bits exponent = (std::bit_cast<Bits>(shifted) - std::bit_cast<Bits>(magic) + C::bias) << C::mantissa;
  const Pack<T> result = sum * std::bit_cast<Pack<T>>(exponent);
  return x < low ? Pack<T>{} : result;
}

PB_INLINE Pack<float> exponential(Pack<float> x) { return exp_pack<float>(x); }
PB_INLINE Pack<double> exponential(Pack<double> x) { return exp_pack<double>(x); }

// The same of N packs that are nowhere positive, one stage after the other: each waits for the one before, so that one
// exponential after the other leaves a machine idle that looks 100 instructions ahead. k ln 2 is taken off in one piece: a
// relative error of up to 3e-9 |x| (3e-17 in double precision), nothing beside a sum of them that is not below 1. Near the
// end of the normal range the result may be subnormal.
template <class T, int N>
PB_INLINE void falling_exp_packs(Pack<T> (&x)[N]) {
  using C = ExpConstants<T>;
  using Bits = typename PackOf<T>::bits;
  const Pack<T> low = broadcast(-C::bias * C::ln2);     // 2^k is 0 there
  const Pack<T> magic = broadcast(C::magic + C::bias);  // k and the bias, from the lowest bit on
  Pack<T> shifted[N], sum[N];
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) x[j] = larger_or_nan<T>(low, x[j]);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) shifted[j] = multiply_add<T>(x[j], broadcast(T(1.4426950408889634)), magic);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) x[j] = multiply_add<T>(shifted[j] - magic, broadcast(-C::ln2), x[j]);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) sum[j] = broadcast(C::polynomial[kExpDegree<T>]);
#pragma GCC unroll 16
  for (int i = kExpDegree<T> - 1; i >= 0; --i) {
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) sum[j] = multiply_add<T>(sum[j], x[j], broadcast(C::polynomial[i]));
  }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j)
    x[j] = sum[j] * std::bit_cast<Pack<T>>(std::bit_cast<Bits>(shifted[j]) << C::mantissa);
}

template <int N>
PB_INLINE void falling_exponentials(Pack<float> (&x)[N]) {
  falling_exp_packs<float>(x);
}
template <int N>
PB_INLINE void falling_exponentials(Pack<double> (&x)[N]) {
  falling_exp_packs<double>(x);
}

// log on a pack: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh(s), s = (m - 1) / (m + 1), by its series in
// s^2 <= 0.0295 (relative truncation 2e-9 in single and 1e-18 in double precision). Measured: at most 1.5 ulp. Numbers
// below the normal range count as 0, whose logarithm is minus infinity; negative ones give NaN, NaN and +inf stay.
template <class T>
PB_INLINE Pack<T> log_pack(Pack<T> x) {
  using C = ExpConstants<T>;
  using Bits = typename PackOf<T>::bits;
  using Word = typename PackOf<T>::word;
  constexpr Word half = std::bit_cast<Word>(T(0.70710678118654752));
  const Bits shifted = std::bit_cast<Bits>(x) - half;
  const Bits k = shifted >> C::mantissa;
  const Bits fraction = (shifted & ((Word(1) << C::mantissa) - 1)) + half;
  const Pack<T> m = std::bit_cast<Pack<T>>(fraction), exponent = __builtin_convertvector(k, Pack<T>);
  const Pack<T> s = (m - T(1)) / (m + T(1)), square = s * s;
  Pack<T> sum = broadcast(T(2.0 / (2 * C::terms + 1)));
#pragma GCC unroll 16
  for (int i = C::terms - 1; i > 0; --i) sum = multiply_add<T>(sum, square, broadcast(T(2.0 / (2 * i + 1))));
  const Pack<T> tail = multiply_add<T>(sum * square, s, exponent * C::ln2_tail);
  const Pack<T> result = multiply_add<T>(exponent, broadcast(C::ln2_head), tail + s * T(2));
  const Pack<T> infinite = broadcast(std::numeric_limits<T>::infinity());
  const Pack<T> low = x < T(0) ? broadcast(std::numeric_limits<T>::quiet_NaN()) : -infinite;
  return x < std::numeric_limits<T>::min() ? low : x < infinite ? result : x;
}

inline Pack<float> logarithm(Pack<float> x) { return log_pack<float>(x); }
inline Pack<double> logarithm(Pack<double> x) { return log_pack<double>(x); }

}  // namespace pb::inline PB_ISA
