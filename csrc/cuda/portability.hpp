// The place that knows who compiles a .cu file: nvcc, or the C++ compiler with the CPU emulator of the tests.
// (tensor_core.hpp has both halves of one instruction.) Kernels use no other CUDA header and start through launch()
// alone. They take one parameter: a plain struct.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef PB_CUDA_EMULATOR
#include <emulator.hpp>
#else
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#endif

namespace pb::cuda {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;
inline constexpr std::size_t kDefaultSharedBytes = 48 * 1024;  // more needs an opt-in of the kernel

/// The dynamic shared memory of the block, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef PB_CUDA_EMULATOR
  return static_cast<T*>(emulator::shared_memory());
#else
  extern __shared__ __align__(16) unsigned char pb_shared_memory[];
  return reinterpret_cast<T*>(pb_shared_memory);
#endif
}

/// blockIdx.x and threadIdx.x, read anew: kept from before, they would cost a register that a call in between wants.
#ifdef PB_CUDA_EMULATOR
inline unsigned block_index() { return blockIdx.x; }
inline unsigned thread_index() { return threadIdx.x; }
#else
__device__ __forceinline__ unsigned block_index() {
  unsigned index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

__device__ __forceinline__ unsigned thread_index() {
  unsigned index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
#endif

/// Asks the second-level cache for the line of p, which nothing waits for.
__device__ __forceinline__ void prefetch([[maybe_unused]] const void* p) {
#ifndef PB_CUDA_EMULATOR
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

/// Starts to copy kBytes (4, 8 or 16, both sides aligned to them) from global to shared memory. The thread sees them after
/// wait_for_copies(), other threads after a barrier behind that.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#ifdef PB_CUDA_EMULATOR
  std::memcpy(shared, global, kBytes);
#else
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {  // past the first cache: it is read from shared memory
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
  }
#endif
}

/// Until all copies that this thread started have arrived.
__device__ __forceinline__ void wait_for_copies() {
#ifndef PB_CUDA_EMULATOR
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/// Waits for all threads of all blocks of launch_cooperative(); what they wrote before is seen by all after it.
#ifdef PB_CUDA_EMULATOR
using emulator::grid_barrier;
#else
// Called, not inlined: there are some fifty of them in a kernel, and they cost registers.
__device__ __noinline__ inline void grid_barrier() { cooperative_groups::this_grid().sync(); }
#endif

/// What launch() starts; `stream` is a cudaStream_t, kept opaque so that callers need no CUDA header.
struct Grid {
  unsigned blocks;           // 0: nothing is started
  unsigned threads;          // a multiple of the warp size
  std::size_t shared_bytes;  // dynamic shared memory of a block
  void* stream;              // null: the default stream
};

#ifdef PB_CUDA_EMULATOR

template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, const std::type_identity_t<Params>& params,
            const char*) {
  emulator::run(kernel, grid.blocks, grid.threads, grid.shared_bytes, false, params);
}

template <class Params>
void launch_cooperative(void (*kernel)(Params), const Grid& grid, const std::type_identity_t<Params>& params,
                        const char*) {
  emulator::run(kernel, grid.blocks, grid.threads, grid.shared_bytes, true, params);
}

#else

/// Throws std::runtime_error that names the kernel, its grid and the reason, unless `status` is success.
inline void check_launch(cudaError_t status, const Grid& grid, const char* name) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here: a later, innocent call must not meet it again
  throw std::runtime_error(std::string("CUDA kernel ") + name + " failed to start (" +
                           std::to_string(grid.blocks) + " blocks of " + std::to_string(grid.threads) +
                           " threads, " + std::to_string(grid.shared_bytes) +
                           " bytes of shared memory): " + cudaGetErrorString(status));
}

/// Lets the kernel have the grid's shared memory.
inline void allow_shared_memory(const void* entry, const Grid& grid, const char* name) {
  if (grid.shared_bytes <= kDefaultSharedBytes) return;
  check_launch(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(grid.shared_bytes)),
               grid, name);
}

/// The grid with no more blocks than the current device runs at the same time.
inline Grid resident(const void* entry, Grid grid, const char* name) {
  int device = 0, multiprocessors = 0, blocks = 0;
  check_launch(cudaGetDevice(&device), grid, name);
  check_launch(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), grid, name);
  check_launch(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry, static_cast<int>(grid.threads),
                                                             grid.shared_bytes),
               grid, name);
  grid.blocks = std::min(grid.blocks, static_cast<unsigned>(std::max(1, blocks * multiprocessors)));
  return grid;
}

/// Starts kernel(params) on the stream. Asynchronous and without allocation, so it can be captured in a CUDA graph.
template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, const std::type_identity_t<Params>& params,
            const char* name) {
  if (grid.blocks == 0) return;
  const void* entry = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(entry, grid, name);
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))};
  check_launch(cudaLaunchKernel(entry, dim3(grid.blocks), dim3(grid.threads), arguments, grid.shared_bytes,
                                static_cast<cudaStream_t>(grid.stream)),
               grid, name);
}

/// The same for a kernel that uses grid_barrier(): all its blocks run at the same time, as many of grid.blocks as the
/// device has room for. Can be captured, too.
template <class Params>
void launch_cooperative(void (*kernel)(Params), const Grid& most, const std::type_identity_t<Params>& params,
                        const char* name) {
  if (most.blocks == 0) return;
  const void* entry = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(entry, most, name);
  const Grid grid = resident(entry, most, name);
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))};
  check_launch(cudaLaunchCooperativeKernel(entry, dim3(grid.blocks), dim3(grid.threads), arguments,
                                           grid.shared_bytes, static_cast<cudaStream_t>(grid.stream)),
               grid, name);
}

#endif

}  // namespace pb::cuda
