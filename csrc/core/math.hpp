// Elementary functions on a lane that is one scalar (CUDA). cpu/pack_math.hpp has those on SIMD packs.
#pragma once

#include <cmath>

#include "core/portable.hpp"

namespace pb::inline PB_ISA {

PB_HD inline float exponential(float x) { return expf(x); }
PB_HD inline double exponential(double x) { return exp(x); }
PB_HD inline float logarithm(float x) { return logf(x); }
PB_HD inline double logarithm(double x) { return log(x); }
PB_HD inline float square_root(float x) { return sqrtf(x); }
PB_HD inline double square_root(double x) { return sqrt(x); }
PB_HD inline float larger(float a, float b) { return a > b ? a : b; }
PB_HD inline double larger(double a, double b) { return a > b ? a : b; }
// 1 where a is b, else `other`.
PB_HD inline float one_where(float a, float b, float other) { return a == b ? 1 : other; }
PB_HD inline double one_where(double a, double b, double other) { return a == b ? 1 : other; }

// x^n by squarings, n >= 0: the same bits everywhere, and as exact as a product of n factors at worst.
PB_HD inline double power(double x, Index n) {
  double result = 1;
  for (; n > 0; n /= 2, x *= x) {
    if (n % 2 == 1) result *= x;
  }
  return result;
}

}  // namespace pb::inline PB_ISA
