// Elementary functions on one scalar lane (CUDA, and tails on the CPU). SIMD packs overload them in cpu/pack.hpp.
#pragma once

#include <cmath>

#include "core/portable.hpp"

namespace pb::inline PB_ISA {

PB_HD inline float exponential(float x) { return expf(x); }
PB_HD inline double exponential(double x) { return exp(x); }
PB_HD inline float logarithm(float x) { return logf(x); }
PB_HD inline double logarithm(double x) { return log(x); }
PB_HD inline float larger(float a, float b) { return a > b ? a : b; }
PB_HD inline double larger(double a, double b) { return a > b ? a : b; }

}  // namespace pb::inline PB_ISA
