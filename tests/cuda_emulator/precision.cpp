// Products on tensor cores, emulated, against double precision: alone, and in a large task. Prints "right", or what differs.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/linear_grid_kernel.hpp"
#include "cuda/tensor_products.hpp"
#include "linear_case.hpp"

namespace {

using pb::Index;
using pb::Matrix;
using pb::Precision;
using pb::Shape;
using pb::Strided;

// The largest error that a precision may have, relative to the sum of the products' sizes; and the least that the worst
// one has if anything is rounded at all.
struct Limits {
  double most, least;
};
constexpr Limits kTf32{1.01 / 1024, 1.0 / 16384}, kThree{2e-6, 0};

struct Operands {
  Shape shape;
  Strided<const float> a;  // mix: A; dots: rows of A
  Matrix<const float> b;
  Strided<float> c;
};

template <bool kThree>
__global__ void dots_kernel(const __grid_constant__ Operands p) {
  pb::cuda::tensor_dots<kThree>(p.shape, {p.a.data, p.a.row}, p.b, p.c, pb::cuda::shared_memory<float>());
}

template <bool kThree>
__global__ void mix_kernel(const __grid_constant__ Operands p) {
  pb::cuda::tensor_mix<kThree>(p.shape, p.a, p.b, {p.c.data, p.c.row});
}

std::vector<float> numbers(Index count) {
  static std::mt19937_64 random{5};
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// The worst relative error of one product of `shape`, infinite where an output is missing or a gap is written to.
template <bool kThree>
double error_of(Shape s, bool mix, bool aligned, unsigned threads) {
  const auto row_of = [&](Index width) { return aligned ? pb::round_up(width, 4) + 4 : width + 1; };
  const Index width = row_of(s.q), outputs = mix ? s.q : s.r, out_row = row_of(outputs),
              a_row = row_of(mix ? s.r : s.q);
  const auto a = numbers(s.p * a_row), b = numbers(s.r * width), before = numbers(s.p * out_row);
  std::vector<float> c = before;
  const Operands p{s, {a.data(), a_row, 1}, {b.data(), width}, {c.data(), out_row, 1}};
  const std::size_t shared = threads / 32 * pb::cuda::kTensorSums * sizeof(float);
  pb::cuda::launch(mix ? mix_kernel<kThree> : dots_kernel<kThree>, {1, threads, shared, nullptr}, p,
                   "tensor");
  double worst = 0;
  for (Index i = 0; i < s.p; ++i) {
    for (Index j = 0; j < out_row; ++j) {
      const auto at = static_cast<std::size_t>(i * out_row + j);
      double sum = s.accumulate || j >= outputs ? before[at] : 0, size = std::abs(sum) + 1e-30;
      for (Index k = 0; j < outputs && k < (mix ? s.r : s.q); ++k) {
        const double x = a[static_cast<std::size_t>(i * a_row + k)],
                     y = b[static_cast<std::size_t>(mix ? k * width + j : j * width + k)];
        sum += x * y, size += std::abs(x * y);
      }
      worst = std::max(worst, std::abs(c[at] - sum) / size);
      if (!std::isfinite(c[at])) worst = INFINITY;
    }
  }
  return worst;
}

template <bool kThree>
bool check_products(Limits limits) {
  double worst = 0;
  const Index sizes[][3] = {{1, 1, 1}, {10, 33, 16}, {3, 200, 5}, {17, 70, 20}, {8, 16, 16}};
  for (const auto& size : sizes) {
    for (const int way : {0, 1, 2, 3, 4, 5, 6, 7}) {
      const Shape shape{size[0], size[1], size[2], way % 2 == 1};
      worst = std::max(worst, error_of<kThree>(shape, way & 2, way & 4, size[1] > 100 ? 128 : 64));
    }
  }
  if (worst <= limits.most && worst >= limits.least) return true;
  std::printf("wrong: products %s are off by %.3g\n", kThree ? "3xtf32" : "tf32", worst);
  return false;
}

template <class T>
using Task =
    pb::LinearTask<pb::cuda::GridTeam<T>, pb::Softmax, pb::LinearPrimal<pb::cuda::GridTeam<T>, pb::Softmax>,
                   pb::Sgd<pb::cuda::GridTeam<T>>>;

// Every result and cotangent of a case, on a device whose blocks stream some of its rows or keep all.
template <class T>
std::vector<double> outcome(const Case& c, Precision precision, std::size_t shared_bytes) {
  const pb::cuda::Device device{shared_bytes, 2};
  const auto plan = [&](const BatchOf<T>& batch, bool reverse) {
    return pb::cuda::plan_grid_task<Task<T>>(batch.params, c.variant(), reverse, device);
  };
  BatchOf<T> batch(c, plan(BatchOf<T>(c, 1), false).tape_size);
  batch.params.precision = precision;
  for (const bool reverse : {false, true}) {
    if (reverse) batch.prepare_reverse();
    const auto how = plan(batch, reverse);
    std::vector<T> workspace(static_cast<std::size_t>(how.workspace_size));
    batch.params.workspace = workspace.data();
    pb::cuda::start_grid_task<Task<T>>(batch.params, c.variant(), reverse, how, nullptr);
  }
  return batch.outcome();
}

double distance(const std::vector<double>& x, const std::vector<double>& want) {
  double error = x.size() == want.size() ? 0 : INFINITY, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    error += std::pow(x[i] - want[i], 2), size += want[i] * want[i];
  return std::sqrt(error / size);
}

// A tall task with every cotangent: the error of each precision, and the same bits wherever its rows are.
bool check_task() {
  constexpr auto kPrimal = pb::Coordinates::kPrimal;
  const Case c{"tall", pb::LinearLoss::kSoftmax, kPrimal, 1, 70, 5, 37, 10, 2, -1, true};
  const std::size_t most = 227 * 1024, few = 12 * 1024;
  const auto want = outcome<double>(c, Precision::kFp32, most),
             fp32 = outcome<float>(c, Precision::kFp32, most),
             three = outcome<float>(c, Precision::k3xTf32, most),
             tf32 = outcome<float>(c, Precision::kTf32, most);
  const double errors[] = {distance(fp32, want), distance(three, want), distance(tf32, want)};
  const bool close = errors[0] < 1e-6 && errors[1] < 2e-6 && errors[2] < 2e-3 && errors[2] > 1e-5;
  if (!close)
    std::printf("wrong: a task is off by %.3g, %.3g and %.3g (fp32, 3xtf32, tf32)\n", errors[0], errors[1],
                errors[2]);
  const bool same =
      outcome<float>(c, Precision::k3xTf32, few) == three && outcome<float>(c, Precision::kTf32, few) == tf32;
  if (!same) std::puts("wrong: other rows in shared memory change bits of rounded products");
  return close && same;
}

}  // namespace

int main() {
  const bool right = check_products<false>(kTf32) & check_products<true>(kThree) & check_task();
  if (right) std::puts("right");
  return right ? 0 : 1;
}
