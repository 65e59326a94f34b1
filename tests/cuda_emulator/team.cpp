// BlockTeam against plain loops, on whole numbers, so that every sum is exact. Prints "right", or what
// differs.
#include "cuda/team.hpp"

#include <cstdio>
#include <vector>

namespace {

using pb::Index;
using pb::Matrix;
using pb::Shape;
using pb::Strided;
using pb::cuda::BlockTeam;

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

template <class T>
bool check_mix(Shape s, bool transposed, unsigned threads) {
  const Strided<const T> layout =
      transposed ? Strided<const T>{nullptr, 1, s.p} : Strided<const T>{nullptr, s.r, 1};
  const auto a = numbers<T>(s.p * s.r, 3), b = numbers<T>(s.r * (s.q + 1), 7);
  auto c = numbers<T>(s.p * (s.q + 2), 5), want = c;  // rows of b and c have a gap behind them
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  for (Index p = 0; p < s.p; ++p) {
    for (Index q = 0; q < s.q; ++q) {
      T sum = s.accumulate ? want[at(p * (s.q + 2) + q)] : T(0);
      for (Index r = 0; r < s.r; ++r)
        sum += a[at(p * layout.row + r * layout.column)] * b[at(r * (s.q + 1) + q)];
      want[at(p * (s.q + 2) + q)] = sum;
    }
  }
  run<T>(mix_kernel<T>,
         {s, {a.data(), layout.row, layout.column}, {b.data(), s.q + 1}, {c.data(), s.q + 2, 1}, nullptr},
         threads);
  return same(c, want, transposed ? "mix, transposed" : "mix", s, threads);
}

template <class T>
bool check_dots(Shape s, bool transposed, unsigned threads) {
  const Index row = transposed ? 1 : s.r, column = transposed ? s.p : 1;
  const auto a = numbers<T>(s.p * (s.q + 1), 3), b = numbers<T>(s.r * (s.q + 2), 7);
  auto c = numbers<T>(s.p * s.r, 5), want = c;
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  for (Index p = 0; p < s.p; ++p) {
    for (Index r = 0; r < s.r; ++r) {
      T sum = s.accumulate ? want[at(p * row + r * column)] : T(0);
      for (Index q = 0; q < s.q; ++q) sum += a[at(p * (s.q + 1) + q)] * b[at(r * (s.q + 2) + q)];
      want[at(p * row + r * column)] = sum;
    }
  }
  run<T>(dots_kernel<T>, {s, {a.data(), s.q + 1, 1}, {b.data(), s.q + 2}, {c.data(), row, column}, nullptr},
         threads);
  return same(c, want, transposed ? "dots, transposed" : "dots", s, threads);
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

template <class T>
bool check_all(unsigned threads) {
  bool right = true;
  for (const Index n : {0, 1, 31, 65, 200}) right &= check_loops<T>(n, threads);
  const Index sizes[][3] = {{1, 1, 1}, {3, 5, 2}, {2, 4, 64}, {9, 1, 70}, {5, 66, 3}, {3, 7, 0}, {0, 3, 2}};
  for (const auto& size : sizes) {
    for (const bool transposed : {false, true}) {
      for (const bool accumulate : {false, true}) {
        const Shape shape{size[0], size[1], size[2], accumulate};
        right &= check_mix<T>(shape, transposed, threads);
        right &= check_dots<T>(shape, transposed, threads);
      }
    }
  }
  return right;
}

}  // namespace

int main() {
#ifdef PB_CUDA_EMULATOR_THREADS
  const bool right = check_all<double>(64);  // 64 host threads a launch: slow, and enough for races
#else
  const bool right =
      check_all<float>(32) & check_all<float>(96) & check_all<double>(64) & check_all<double>(256);
#endif
  if (right) std::puts("right");
  return right ? 0 : 1;
}
