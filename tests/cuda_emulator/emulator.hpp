// CUDA on the CPU, for tests: the words of CUDA that the kernels use, with rules checked that a GPU leaves
// unchecked.
//
// Compile a .cu file with `g++ -x c++ -DPB_CUDA_EMULATOR -I tests/cuda_emulator`; csrc/cuda/portability.hpp
// includes this file then. Two ways to run the threads of a block:
//   default                      fibers of one host thread; deterministic, for -fsanitize=address,undefined
//   -DPB_CUDA_EMULATOR_THREADS   a host thread each; for -fsanitize=thread, which sees races between lanes
// Checked in both: all lanes of a warp (of a block) meet in the same barrier and leave the kernel together;
// shuffles name the whole warp and an existing source lane. Shared memory is a fresh allocation for each
// block, of the exact size and filled with NaN. Blocks of a common launch run one after another, so races
// between them go unseen; those of a cooperative launch are all alive, and meet in grid barriers. Blocks are one-dimensional and a multiple of 32 threads; static __shared__ variables, atomics and
// partial warp masks do not exist here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <type_traits>
#include <vector>

#ifdef PB_CUDA_EMULATOR_THREADS
#include "threads.hpp"
#else
#include "fibers.hpp"
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (::emulator::Index{::emulator::Lanes::self() % ::emulator::launch().threads})
#define blockIdx (::emulator::Index{::emulator::launch().first + ::emulator::block_alive()})
#define blockDim (::emulator::Index{::emulator::launch().threads})
#define gridDim (::emulator::Index{::emulator::launch().blocks})

namespace emulator {

inline constexpr std::size_t kShareAlignment = 16;
inline constexpr unsigned kMaxThreads = 1024;
inline constexpr unsigned kFullMask = 0xffffffffu;

struct Index {
  unsigned x;
};

/// The launch in progress, and the blocks of it that are alive: first, first + 1 ...
struct Launch {
  struct alignas(16) Place {
    unsigned char bytes[16];
  };
  unsigned blocks = 0, threads = 0, first = 0;
  bool cooperative = false;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> shared;  // of each block alive
  std::vector<Place> exchange;                                      // one place a lane, for shuffles
};

inline Launch& launch() {
  static Launch state;
  return state;
}

/// A block's dynamic shared memory: every byte 0xff, which is NaN in float and in double, and -1 in int.
inline std::unique_ptr<void, decltype(&std::free)> poisoned_memory(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kShareAlignment, bytes) != 0) fail("out of memory");
  std::memset(memory, 0xff, bytes);
  return {memory, &std::free};
}

/// The number of the calling lane's block among those alive, and its shared memory.
inline unsigned block_alive() { return Lanes::self() / launch().threads; }
inline void* shared_memory() { return launch().shared[block_alive()].get(); }

/// Runs kernel(params) for blocks x threads: one block after the other, or (cooperative) all at once.
template <class Params>
void run(void (*kernel)(Params), unsigned blocks, unsigned threads, std::size_t shared_bytes,
         bool cooperative, const std::type_identity_t<Params>& params) {
  if (blocks == 0) return;
  if (threads == 0 || threads > kMaxThreads || threads % kWarp != 0)
    fail("a block must have 32, 64, ... 1024 threads");
  Launch& now = launch();
  now.blocks = blocks;
  now.threads = threads;
  now.cooperative = cooperative;
  const unsigned alive = cooperative ? blocks : 1;
  now.exchange.resize(alive * threads);
  for (now.first = 0; now.first < blocks; now.first += alive) {
    now.shared.clear();
    for (unsigned block = 0; block < alive; ++block) now.shared.push_back(poisoned_memory(shared_bytes));
    Lanes::run(alive, threads, [&] { kernel(params); });
  }
  now.shared.clear();
}

template <class T>
T exchange(unsigned mask, T value, unsigned source, const std::source_location& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  if (mask != kFullMask) fail("a shuffle must name the whole warp");
  if (source >= kWarp) fail("a shuffle reads from a lane outside the warp");
  const unsigned lane = Lanes::self(), warp = lane / kWarp * kWarp;
  std::memcpy(launch().exchange[lane].bytes, &value, sizeof value);
  Lanes::arrive({Event::Kind::warp, site});
  std::memcpy(&value, launch().exchange[warp + source].bytes, sizeof value);
  Lanes::arrive({Event::Kind::warp, site});
  return value;
}

inline unsigned lane_in_warp() { return Lanes::self() % kWarp; }

/// The barrier of a cooperative launch.
inline void grid_barrier(const std::source_location& site = std::source_location::current()) {
  if (!launch().cooperative) fail("a grid barrier needs a cooperative launch");
  Lanes::arrive({Event::Kind::grid, site});
}

}  // namespace emulator

inline void __syncthreads(const std::source_location& site = std::source_location::current()) {
  emulator::Lanes::arrive({emulator::Event::Kind::block, site});
}

inline void __syncwarp(unsigned mask = emulator::kFullMask,
                       const std::source_location& site = std::source_location::current()) {
  if (mask != emulator::kFullMask) emulator::fail("__syncwarp must name the whole warp");
  emulator::Lanes::arrive({emulator::Event::Kind::warp, site});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source,
              const std::source_location& site = std::source_location::current()) {
  return emulator::exchange(mask, value, static_cast<unsigned>(source), site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits,
                  const std::source_location& site = std::source_location::current()) {
  return emulator::exchange(mask, value, emulator::lane_in_warp() ^ static_cast<unsigned>(bits), site);
}

/// A lane whose source lies beyond the warp keeps its own value, as on the device.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta,
                   const std::source_location& site = std::source_location::current()) {
  const unsigned lane = emulator::lane_in_warp();
  return emulator::exchange(mask, value, lane + delta < emulator::kWarp ? lane + delta : lane, site);
}
