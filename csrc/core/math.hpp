// Elementary functions on a lane that is one scalar (CUDA). cpu/pack.hpp has those on SIMD packs.
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
