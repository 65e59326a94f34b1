// A SIMD pack: kLanes scalars of one register.
#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/portable.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // packs never cross a library boundary

namespace pb::inline PB_ISA {

// For what holds packs in registers across calls: an array that is passed on goes through memory.
#define PB_INLINE __attribute__((always_inline)) inline

// With AVX-512 there are twice as many registers, and masks; packs stay 32 bytes: on the machine at hand (Zen 4, whose
// 64-byte multiply-add takes two turns) wider ones were slower but for the steps of tasks in lanes.
inline constexpr int kPackBytes = 32;
#ifdef __AVX512VL__
inline constexpr int kPackRegisters = 32;
#else
inline constexpr int kPackRegisters = 16;
#endif

template <class T>
struct PackOf {
  using word = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef T type __attribute__((vector_size(kPackBytes)));
  typedef T unaligned __attribute__((vector_size(kPackBytes), aligned(sizeof(T)), may_alias));
  typedef word bits __attribute__((vector_size(kPackBytes)));
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

// Past the caches, to an address that is a multiple of kPackBytes.
template <class T>
inline void stream_pack(T* p, Pack<T> x) {
#ifdef __AVX__
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(p, x);
  } else {
    _mm256_stream_pd(p, x);
  }
#else
  store_pack(p, x);
#endif
}

// The first `count` scalars, zeros behind, or to there; no other is touched. What is stored is no whole pack: count < lanes.
#if defined(__AVX512VL__)

inline Pack<float> load_part(const float* p, Index count) {
  return _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1), p);
}
inline Pack<double> load_part(const double* p, Index count) {
  return _mm256_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
}
inline void store_part(float* p, Pack<float> x, Index count) {
  _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << count) - 1), x);
}
inline void store_part(double* p, Pack<double> x, Index count) {
  _mm256_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), x);
}

#elif defined(__AVX2__)

inline __m256i part_mask(Index scalars, Index words_each) {
  alignas(32) static constexpr std::int32_t words[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 8 - scalars * words_each));
}
inline Pack<float> load_part(const float* p, Index count) {
  return _mm256_maskload_ps(p, part_mask(count, 1));
}
inline Pack<double> load_part(const double* p, Index count) {
  return _mm256_maskload_pd(p, part_mask(count, 2));
}
// By halves: a masked store is a long program on some processors (AMD's Zen, up to the third).
inline void store_part(float* p, Pack<float> x, Index count) {
  __m128 part = _mm256_castps256_ps128(x);
  if (count & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(x, 1);
    p += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (count & 1) _mm_store_ss(p, part);
}
inline void store_part(double* p, Pack<double> x, Index count) {
  __m128d part = _mm256_castpd256_pd128(x);
  if (count & 2) {
    _mm_storeu_pd(p, part);
    part = _mm256_extractf128_pd(x, 1);
    p += 2;
  }
  if (count & 1) _mm_store_sd(p, part);
}

#else

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

#endif

// Blocks of 2 Width lanes: the sums of both halves of a's block, then those of b's.
template <class T, int Width, int... I>
inline Pack<T> add_halves(Pack<T> a, Pack<T> b, std::integer_sequence<int, I...>) {
  using Bits = typename PackOf<T>::bits;
  constexpr int lanes = PackOf<T>::lanes;
  // The lanes that stay in place are a blend, which costs less than a permutation.
  return __builtin_shuffle(a, b, Bits{(I & Width ? I + lanes : I)...}) +
         __builtin_shuffle(a, b, Bits{(I & Width ? I - Width + lanes : I + Width)...});
}

template <class T, int Width>
PB_INLINE void sum_pairs(Pack<T> (&x)[PackOf<T>::lanes]) {
#pragma GCC unroll 8
  for (int j = 0; j < Width; ++j) {
    x[j] = add_halves<T, Width>(x[j], x[j + Width], std::make_integer_sequence<int, PackOf<T>::lanes>());
  }
  if constexpr (Width > 1) sum_pairs<T, Width / 2>(x);
}

// Lane j of the result is the sum of the lanes of x[j]: a transposition and a sum in one, log2(lanes) rounds of
// pairwise additions. x is scratch afterwards.
template <class T>
PB_INLINE Pack<T> sum_each(Pack<T> (&x)[PackOf<T>::lanes]) {
  sum_pairs<T, PackOf<T>::lanes / 2>(x);
  return x[0];
}

template <class T>
inline Pack<T> broadcast(T x) {
  return x - Pack<T>{};  // x + 0 is not x where x is -0
}

// x itself, which the compiler may not fetch again from memory at every use.
template <class T>
PB_INLINE Pack<T> in_register(Pack<T> x) {
#ifdef __AVX__
  asm("" : "+v"(x));
#endif
  return x;
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

// Sum of the lanes: a fixed tree, halves added to halves.
template <class T>
PB_INLINE T sum_lanes(Pack<T> x) {
  constexpr int lanes = PackOf<T>::lanes;
  T sums[lanes];
  for (int i = 0; i < lanes; ++i) sums[i] = x[i];
#pragma GCC unroll 4
  for (int width = lanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

template <class V>
  requires(!std::is_arithmetic_v<V>)
inline V larger(V a, V b) {
  return a > b ? a : b;
}

template <class V, class T>
  requires(!std::is_arithmetic_v<V>)
inline V one_where(V a, T b, V other) {
  return a == b ? V{} + T(1) : other;
}

// The second where either is NaN: one instruction, which the compiler does not find.
template <class T>
PB_INLINE Pack<T> larger_or_nan(Pack<T> a, Pack<T> b) {
#ifdef __AVX__
  if constexpr (sizeof(T) == 4) {
    return _mm256_max_ps(a, b);
  } else {
    return _mm256_max_pd(a, b);
  }
#else
  return a > b ? a : b;
#endif
}

}  // namespace pb::inline PB_ISA
