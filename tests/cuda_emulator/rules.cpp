// One broken rule of CUDA for each name, and kernels that break none: `rules NAME` runs it. Driven by
// test_cuda_emulator.py, which knows what each must print.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/portability.hpp"

namespace {

using pb::cuda::grid_barrier;
using pb::cuda::kFullMask;
using pb::cuda::launch;
using pb::cuda::launch_cooperative;
using pb::cuda::shared_memory;

struct Params {
  const double* in;
  double* out;
  int n;
};

// Sum of each block's own n numbers: strided sums, shuffles within warps, shared memory between them.
__global__ void block_sum(const __grid_constant__ Params p) {
  double* partial = shared_memory<double>();
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < p.n; i += static_cast<int>(blockDim.x)) {
    sum += p.in[static_cast<int>(blockIdx.x) * p.n + i];
  }
  for (int offset = 16; offset > 0; offset /= 2)
    sum += __shfl_down_sync(kFullMask, sum, static_cast<unsigned>(offset));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    p.out[blockIdx.x] = sum;
  }
}

// Reverses 32 numbers within a warp, by shared memory.
__global__ void warp_reverse(const __grid_constant__ Params p) {
  double* shared = shared_memory<double>();
  shared[threadIdx.x] = p.in[threadIdx.x];
  __syncwarp();
  p.out[threadIdx.x] = shared[31 - threadIdx.x];
}

__global__ void shuffles(const __grid_constant__ Params p) {
  const double own = p.in[threadIdx.x];
  const double first = __shfl_sync(kFullMask, own, 0);
  const double neighbour = __shfl_xor_sync(kFullMask, own, 1);
  const double below = __shfl_down_sync(kFullMask, own, 30u);
  p.out[threadIdx.x] = 10000 * first + 100 * neighbour + below;
}

__global__ void missing_barrier(const __grid_constant__ Params p) {
  double* shared = shared_memory<double>();
  shared[threadIdx.x] = p.in[threadIdx.x];
  p.out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// The second write needs a barrier of its own: it may overtake the first read.
__global__ void missing_second_barrier(const __grid_constant__ Params p) {
  double* shared = shared_memory<double>();
  for (int round = 0; round < 3; ++round) {
    shared[threadIdx.x] = round;
    __syncthreads();
    p.out[threadIdx.x] += shared[(threadIdx.x + 1) % blockDim.x];
  }
}

// Warps meet at a warp barrier, which orders nothing between the two of them.
__global__ void warp_barrier_for_block(const __grid_constant__ Params p) {
  double* shared = shared_memory<double>();
  shared[threadIdx.x] = p.in[threadIdx.x];
  __syncwarp();
  p.out[threadIdx.x] = shared[(threadIdx.x + 32) % 64];
}

__global__ void shared_overflow(const __grid_constant__ Params p) {
  shared_memory<double>()[threadIdx.x + 1] = p.in[threadIdx.x];
}

__global__ void global_overflow(const __grid_constant__ Params p) { p.out[threadIdx.x + 1] = 1; }

// The red zones of a lane's stack must survive the switches between lanes.
__global__ void stack_overflow(const __grid_constant__ Params p) {
  double local[4] = {1, 2, 3, 4};
  double* volatile hidden = local;  // out of sight of UBSan, which knows the bounds of an array
  __syncthreads();
  p.out[threadIdx.x] = hidden[p.n];
}

__global__ void early_exit(const __grid_constant__ Params) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void early_exit_of_warp(const __grid_constant__ Params) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}

__global__ void other_barrier(const __grid_constant__ Params) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void other_kind(const __grid_constant__ Params) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void partial_mask(const __grid_constant__ Params p) {
  p.out[threadIdx.x] = __shfl_sync(0xffffu, p.in[threadIdx.x], 0);
}

__global__ void foreign_lane(const __grid_constant__ Params p) {
  p.out[threadIdx.x] = __shfl_sync(kFullMask, p.in[threadIdx.x], 32);
}

__global__ void unwritten(const __grid_constant__ Params p) {
  p.out[threadIdx.x] = shared_memory<double>()[threadIdx.x];
}

// Each thread reads, three times over, what a thread of another block wrote.
__global__ void grid_reverse(const __grid_constant__ Params p) {
  const unsigned self = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  for (int round = 0; round < 3; ++round) {
    p.out[self] = p.in[self] + round;
    grid_barrier();
    const double other = p.out[all - 1 - self];
    grid_barrier();
    p.out[self] = other;
  }
}

// A barrier of each block orders nothing between blocks.
__global__ void block_barrier_for_grid(const __grid_constant__ Params p) {
  const unsigned self = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  p.out[self] = p.in[self];
  __syncthreads();
  p.out[self] += p.out[all - 1 - self];
}

__global__ void early_exit_of_block(const __grid_constant__ Params) {
  if (blockIdx.x == 1) return;
  grid_barrier();
}

__global__ void grid_barrier_of_one_warp(const __grid_constant__ Params) {
  if (threadIdx.x < 32) grid_barrier();
  __syncthreads();
}

__global__ void grid_barrier_in_common_launch(const __grid_constant__ Params) { grid_barrier(); }

struct Data {
  std::vector<double> in, out;
  explicit Data(int n) : in(static_cast<std::size_t>(n)), out(in) {
    for (int i = 0; i < n; ++i) in[static_cast<std::size_t>(i)] = i;
  }
  Params params(int n) { return {in.data(), out.data(), n}; }
};

bool check_block_sum() {
  Data data(5 * 77);
  launch(block_sum, {5, 96, 3 * sizeof(double), nullptr}, data.params(77), "block_sum");
  for (int block = 0; block < 5; ++block) {
    if (data.out[static_cast<std::size_t>(block)] != 77 * (77 * block + 38)) return false;
  }
  return true;
}

bool check_warp_reverse() {
  Data data(32);
  launch(warp_reverse, {1, 32, 32 * sizeof(double), nullptr}, data.params(32), "warp_reverse");
  for (std::size_t i = 0; i < 32; ++i) {
    if (data.out[i] != static_cast<double>(31 - i)) return false;
  }
  return true;
}

bool check_shuffles() {
  Data data(64);
  launch(shuffles, {1, 64, 0, nullptr}, data.params(64), "shuffles");
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, below = lane + 30 < 32 ? i + 30 : i;
    if (data.out[static_cast<std::size_t>(i)] != 10000 * (i - lane) + 100 * (i ^ 1) + below) return false;
  }
  return true;
}

bool check_grid_reverse() {
  Data data(192);
  launch_cooperative(grid_reverse, {3, 64, 0, nullptr}, data.params(192), "grid_reverse");
  for (std::size_t i = 0; i < 192; ++i) {
    if (data.out[i] != static_cast<double>(191 - i) + 2) return false;
  }
  return true;
}

bool check_poison() {
  Data data(64);
  launch(unwritten, {1, 64, 64 * sizeof(double), nullptr}, data.params(64), "unwritten");
  for (double value : data.out) {
    if (!std::isnan(value)) return false;
  }
  return true;
}

bool check_empty() {
  launch(early_exit, {0, 64, 0, nullptr}, {}, "early_exit");
  return true;
}

struct Broken {
  const char* name;
  void (*kernel)(Params);
  bool cooperative = false;  // two blocks at once, instead of one
};

constexpr Broken kBroken[] = {
    {"missing_barrier", missing_barrier},
    {"missing_second_barrier", missing_second_barrier},
    {"warp_barrier_for_block", warp_barrier_for_block},
    {"shared_overflow", shared_overflow},
    {"global_overflow", global_overflow},
    {"stack_overflow", stack_overflow},
    {"early_exit", early_exit},
    {"early_exit_of_warp", early_exit_of_warp},
    {"other_barrier", other_barrier},
    {"other_kind", other_kind},
    {"partial_mask", partial_mask},
    {"foreign_lane", foreign_lane},
    {"grid_barrier_in_common_launch", grid_barrier_in_common_launch},
    {"block_barrier_for_grid", block_barrier_for_grid, true},
    {"early_exit_of_block", early_exit_of_block, true},
    {"grid_barrier_of_one_warp", grid_barrier_of_one_warp, true},
};

struct Sound {
  const char* name;
  bool (*check)();
};

constexpr Sound kSound[] = {
    {"block_sum", check_block_sum}, {"warp_reverse", check_warp_reverse},
    {"shuffles", check_shuffles},   {"poison", check_poison},
    {"empty", check_empty},         {"grid_reverse", check_grid_reverse},
};

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  for (const Sound& sound : kSound) {
    if (std::strcmp(name, sound.name) != 0) continue;
    std::puts(sound.check() ? "right" : "wrong");
    return 0;
  }
  for (const Broken& broken : kBroken) {
    if (std::strcmp(name, broken.name) != 0) continue;
    Data data(broken.cooperative ? 128 : 64);
    if (broken.cooperative) {
      launch_cooperative(broken.kernel, {2, 64, 0, nullptr}, data.params(4), broken.name);
    } else {
      launch(broken.kernel, {1, 64, 64 * sizeof(double), nullptr}, data.params(4), broken.name);
    }
    std::puts("unnoticed");
    return 0;
  }
  std::fprintf(stderr, "no kernel named '%s'\n", name);
  return 2;
}
