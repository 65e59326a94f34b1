// BlockTeam and GridTeam against plain loops, on whole numbers, so that every sum is exact. Prints "right", or what
// differs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

#include "cuda/grid_team.hpp"

namespace {

using pb::Index;
using pb::Matrix;
using pb::Shape;
using pb::Strided;
using pb::cuda::BlockTeam;
using pb::cuda::GridTeam;

template <class T>
struct Params {
  Shape shape;
  Strided<const T> a;  // mix: A by strides; dots: rows of A
  Matrix<const T> b;
  Strided<T> c;
  T* sums;
};

template <class T>
__global__ void mix_kernel(const __grid_constant__ Params<T> p) {
  const BlockTeam<T> team{pb::cuda::shared_memory<T>()};
  team.mix(p.shape, p.a, p.b, Matrix<T>{p.c.data, p.c.row});
}

template <class T>
__global__ void dots_kernel(const __grid_constant__ Params<T> p) {
  const BlockTeam<T> team{pb::cuda::shared_memory<T>()};
  team.dots(p.shape, Matrix<const T>{p.a.data, p.a.row}, p.b, p.c);
}

// c[i] = i^2 by for_each, 2 c[i] by for_lanes, then the sums of c and of its indices, in chunks, seen by
// every thread.
template <class T>
__global__ void loops_kernel(const __grid_constant__ Params<T> p) {
  const BlockTeam<T> team{pb::cuda::shared_memory<T>()};
  T* c = p.c.data;
  team.for_each(p.shape.p, [&](Index i) { c[i] = static_cast<T>(i * i); });
  team.for_lanes(p.shape.p, [&](Index i) { team.store(c + i, 2 * team.load(c + i)); });
  T sums[2];
  team.chunks(2, [&](const BlockTeam<T>& member, Index) {
    member.template reduce<2>(p.shape.p, sums, [&](Index i, T(&lane)[2]) {
      lane[0] += c[i];
      lane[1] += static_cast<T>(i);
    });
  });
  p.sums[2 * threadIdx.x] = sums[0];
  p.sums[2 * threadIdx.x + 1] = sums[1];
}

template <class T>
std::vector<T> numbers(Index count, Index step) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = static_cast<T>((i * step) % 11 - 5);
  return values;
}

template <class T>
void run(void (*kernel)(Params<T>), const Params<T>& params, unsigned threads) {
  pb::cuda::launch(kernel, {1, threads, BlockTeam<T>::kScratch * sizeof(T), nullptr}, params, "team");
}

template <class T>
bool same(const std::vector<T>& got, const std::vector<T>& want, const char* what, Shape s,
          unsigned threads) {
  if (got == want) return true;
  std::printf("wrong: %s p=%d q=%d r=%d accumulate=%d threads=%u sizeof=%d\n", what, int(s.p), int(s.q),
              int(s.r), int(s.accumulate), threads, int(sizeof(T)));
  return false;
}

// Elements from one row of `width` to the next: rows aligned to 16 bytes, or mostly not.
Index row_of(Index width, bool aligned) { return aligned ? pb::round_up(width, 4) + 4 : width + 1; }

template <class T>
bool check_mix(Shape s, bool transposed, bool aligned, unsigned threads) {
  const Index depth = row_of(s.r, aligned), row = row_of(s.q, aligned);
  const Strided<const T> layout =
      transposed ? Strided<const T>{nullptr, 1, s.p} : Strided<const T>{nullptr, depth, 1};
  const auto a = numbers<T>(std::max(s.p * depth, s.p * s.r), 3), b = numbers<T>(s.r * row, 7);
  auto c = numbers<T>(s.p * row, 5), want = c;  // rows have a gap behind them, which must stay
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  for (Index p = 0; p < s.p; ++p) {
    for (Index q = 0; q < s.q; ++q) {
      T sum = s.accumulate ? want[at(p * row + q)] : T(0);
      for (Index r = 0; r < s.r; ++r) sum += a[at(p * layout.row + r * layout.column)] * b[at(r * row + q)];
      want[at(p * row + q)] = sum;
    }
  }
  run<T>(mix_kernel<T>,
         {s, {a.data(), layout.row, layout.column}, {b.data(), row}, {c.data(), row, 1}, nullptr}, threads);
  return same(c, want, transposed ? "mix, transposed" : "mix", s, threads);
}

template <class T>
bool check_dots(Shape s, bool transposed, bool aligned, unsigned threads) {
  const Index row = transposed ? 1 : s.r, column = transposed ? s.p : 1, width = row_of(s.q, aligned);
  const auto a = numbers<T>(s.p * width, 3), b = numbers<T>(s.r * width, 7);
  auto c = numbers<T>(s.p * s.r, 5), want = c;
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  for (Index p = 0; p < s.p; ++p) {
    for (Index r = 0; r < s.r; ++r) {
      T sum = s.accumulate ? want[at(p * row + r * column)] : T(0);
      for (Index q = 0; q < s.q; ++q) sum += a[at(p * width + q)] * b[at(r * width + q)];
      want[at(p * row + r * column)] = sum;
    }
  }
  run<T>(dots_kernel<T>, {s, {a.data(), width, 1}, {b.data(), width}, {c.data(), row, column}, nullptr},
         threads);
  return same(c, want, transposed ? "dots, transposed" : "dots", s, threads);
}

// A product of numbers that round, with rows that are aligned or not.
template <class T>
std::vector<T> product(Shape s, bool dots, bool aligned, unsigned threads) {
  const Index width = row_of(s.q, aligned), rows = std::max(s.p, s.r);
  std::vector<T> a(static_cast<std::size_t>(rows * width)), b(a), c(static_cast<std::size_t>(s.p * width)),
      out;
  for (Index i = 0; i < rows; ++i) {
    for (Index q = 0; q < s.q; ++q) {
      a[static_cast<std::size_t>(i * width + q)] = static_cast<T>(std::sin(1.0 + double(q + i * s.q)));
      b[static_cast<std::size_t>(i * width + q)] = static_cast<T>(std::cos(2.0 + double(q + i * s.q)));
    }
  }
  if (dots) {
    run<T>(dots_kernel<T>, {s, {a.data(), width, 1}, {b.data(), width}, {c.data(), width, 1}, nullptr},
           threads);
  } else {
    run<T>(mix_kernel<T>, {s, {a.data(), width, 1}, {b.data(), width}, {c.data(), width, 1}, nullptr},
           threads);
  }
  for (Index p = 0; p < s.p; ++p)
    out.insert(out.end(), c.begin() + p * width, c.begin() + p * width + (dots ? s.r : s.q));
  return out;
}

// The number of threads, hence the tile, and the alignment of rows change no bit.
template <class T>
bool check_bits() {
  bool right = true;
  for (const bool dots : {false, true}) {
    for (const Shape s : {Shape{7, 21, 8}, Shape{11, 70, 13}, Shape{6, 300, 7}}) {
      const std::vector<T> tiles = product<T>(s, dots, true, 32);
      right &= same(product<T>(s, dots, false, 32), tiles, dots ? "bits of dots, rows" : "bits of mix, rows",
                    s, 32);
      right &= same(product<T>(s, dots, true, 512), tiles, dots ? "bits of dots" : "bits of mix", s, 512);
    }
  }
  return right;
}

template <class T>
bool check_loops(Index n, unsigned threads) {
  std::vector<T> c(static_cast<std::size_t>(n)), want(c), sums(2 * threads), want_sums(2 * threads);
  T total = 0;
  for (Index i = 0; i < n; ++i) {
    want[static_cast<std::size_t>(i)] = static_cast<T>(2 * i * i);
    total += want[static_cast<std::size_t>(i)];
  }
  for (unsigned thread = 0; thread < threads; ++thread) {
    want_sums[2 * thread] = total;
    want_sums[2 * thread + 1] = static_cast<T>(n * (n - 1) / 2);
  }
  run<T>(loops_kernel<T>, {{n, 0, 0}, {}, {}, {c.data(), 1, 1}, sums.data()}, threads);
  return same(c, want, "loops", {n, 0, 0}, threads) & same(sums, want_sums, "reduce", {n, 0, 0}, threads);
}

// The sums of n numbers, twice over and once of fewer, as the first thread of each block has them.
template <class T>
__global__ void grid_kernel(const __grid_constant__ Params<T> p) {
  const GridTeam<T> team{{pb::cuda::shared_memory<T>()}, p.c.data};
  const Index n = p.shape.p;
  T sums[1], again[1], few[1];
  const auto add = [&](Index i, T(&lane)[1]) { lane[0] += p.b.data[i]; };
  team.template reduce<1>(n, sums, add);
  team.template reduce<1>(n, again, add);
  team.template reduce<1>(n / 2, few, add);
  T* const out = p.sums + 3 * blockIdx.x;
  if (threadIdx.x == 0) out[0] = sums[0], out[1] = again[0], out[2] = few[0];
}

template <class T>
bool check_grid(unsigned blocks, unsigned threads) {
  bool right = true;
  for (const Index n : {1, 700, 140000}) {  // the last: slabs of more than kSlab
    const auto b = numbers<T>(n, 3);
    std::vector<T> partials(GridTeam<T>::kPartials), sums(3 * blocks), want;
    const T all = std::accumulate(b.begin(), b.end(), T(0)),
            few = std::accumulate(b.begin(), b.begin() + n / 2, T(0));
    for (unsigned block = 0; block < blocks; ++block) want.insert(want.end(), {all, all, few});
    pb::cuda::launch_cooperative(grid_kernel<T>, {blocks, threads, GridTeam<T>::kShared * sizeof(T), nullptr},
                                 {{n, 0, 0}, {}, {b.data(), 1}, {partials.data(), 1, 1}, sums.data()},
                                 "grid");
    right &= same(sums, want, "reduce on the grid", {n, 0, 0}, threads);
  }
  return right;
}

template <class T>
bool check_all(unsigned threads) {
  bool right = true;
  for (const Index n : {0, 1, 31, 65, 200}) right &= check_loops<T>(n, threads);
  const Index sizes[][3] = {
      {1, 1, 1},    {3, 5, 2},    {2, 4, 64},  {9, 1, 70}, {5, 66, 3}, {3, 7, 0}, {0, 3, 2},
#ifndef PB_CUDA_EMULATOR_THREADS
      {13, 40, 11}, {7, 300, 16}, {12, 17, 9},
#endif
  };
  for (const auto& size : sizes) {
    for (const bool transposed : {false, true}) {
      for (const bool accumulate : {false, true}) {
        const Shape shape{size[0], size[1], size[2], accumulate};
        for (const bool aligned : {false, true}) {
          right &= check_mix<T>(shape, transposed, aligned, threads);
          right &= check_dots<T>(shape, transposed, aligned, threads);
        }
      }
    }
  }
  return right;
}

}  // namespace

int main() {
#ifdef PB_CUDA_EMULATOR_THREADS
  const bool right = check_all<double>(64) &
                     check_grid<double>(2, 64);  // 64 host threads a launch: slow, and enough for races
#else
  const bool right = check_all<float>(32) & check_all<float>(96) & check_all<double>(64) &
                     check_all<double>(256) & check_bits<float>() & check_bits<double>() &
                     check_grid<float>(3, 64) & check_grid<double>(1, 32);
#endif
  if (right) std::puts("right");
  return right ? 0 : 1;
}
