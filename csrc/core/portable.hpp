// What every header of the kernels may assume: host/device markers, the index type, the instruction-set namespace.
#pragma once

#include <cstdint>

#ifdef __CUDACC__  // empty for the C++ compiler, the CPU emulator of CUDA included
#define PB_HD __host__ __device__
#else
#define PB_HD
#endif

// Templates are compiled once per instruction set; the inline namespace keeps the linker from merging the copies.
#ifndef PB_ISA
#define PB_ISA generic
#endif

// The recurrence must round the same way wherever it is called from (a stored and a recomputed state are bitwise
// equal), so the function that advances a state is never inlined into two different callers. nvcc may inline it: with
// -fmad=false it contracts nothing by itself, and an opaque call would push the team's registers to memory.
#if defined(__CUDACC__)
#define PB_NOINLINE
#else
#define PB_NOINLINE __attribute__((noinline))
#endif

// What has to become part of its caller, where numbers are constants and arrays are registers. Behind the parameters of a
// lambda too.
#if defined(__CUDACC__)
#define PB_MERGED
#else
#define PB_MERGED __attribute__((always_inline))
#endif

namespace pb {

using Index = std::int64_t;

// Smallest multiple of `unit` that is not below n.
PB_HD constexpr Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }
PB_HD constexpr Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }

// How much of `rest` to take next: `most`, but the last two parts are even.
PB_HD constexpr Index next_part(Index rest, Index most) {
  return rest <= most ? rest : rest >= 2 * most ? most : (rest + 1) / 2;
}

// Scalars of a cache line.
template <class T>
inline constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));

}  // namespace pb
