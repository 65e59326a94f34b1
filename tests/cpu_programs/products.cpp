// cpu/matmul.hpp against sums written out, in buffers of exactly the size of the matrices: every size takes another way through
// tiles and panels, and none may leave its matrices, lose a term, or make another sum for a part of the rows.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>

#include "cpu/matmul.hpp"

namespace {

using namespace pb;

constexpr Index kRows[] = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 14, 16, 20, 26};
constexpr Index kColumns[] = {1, 7, 8, 17, 24, 32, 40, 48, 56, 64, 72, 80, 88, 104, 133};
constexpr Index kTerms[] = {1, 2, 5, 6, 16, 33, 100, 129, 330};

// As long as it is, at a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(Index n) : size_(n), data_(static_cast<T*>(::operator new(n * sizeof(T), kLine))) {
    for (Index i = 0; i < n; ++i)
      data_[i] = static_cast<T>(static_cast<double>((next_ = next_ * 69069u + 1u) >> 8) / (1 << 24) - 0.5);
  }
  Buffer(const Buffer& other) : Buffer(other.size_) { std::memcpy(data_, other.data_, size_ * sizeof(T)); }
  ~Buffer() { ::operator delete(data_, kLine); }
  T* data() const { return data_; }
  bool same_bits(const Buffer& other) const {
    return std::memcmp(data_, other.data_, size_ * sizeof(T)) == 0;
  }

 private:
  static constexpr std::align_val_t kLine{64};
  inline static unsigned next_ = 1;
  Index size_;
  T* data_;
};

// Whether C is base (if that counts) + the sum of term(i, j, k) over k < r, to rounding.
template <class T, class F>
bool right(const char* what, Index p, Index q, Index r, const Buffer<T>& base, bool accumulate,
           const Buffer<T>& c, F term) {
  for (Index i = 0; i < p; ++i) {
    for (Index j = 0; j < q; ++j) {
      double sum = accumulate ? base.data()[i * q + j] : 0, size = std::abs(sum);
      for (Index k = 0; k < r; ++k) sum += term(i, j, k), size += std::abs(term(i, j, k));
      const double limit =
          4 * (sizeof(T) == 4 ? 6e-8 : 1.2e-16) * std::sqrt(static_cast<double>(r) + 4) * size;
      if (std::abs(c.data()[i * q + j] - sum) <= limit) continue;
      std::printf("%s %ld x %ld x %ld: [%ld, %ld] is %g, not %g\n", what, p, q, r, i, j,
                  double(c.data()[i * q + j]), sum);
      return false;
    }
  }
  return true;
}

template <class T>
bool mix_is_right(Index p, Index q, Index r, bool accumulate, bool turned, bool hinted) {
  const Buffer<T> a(p * r), b(r * q), base(p * q);
  const Strided<const T> rows = turned ? Strided<const T>{a.data(), 1, p} : Strided<const T>{a.data(), r, 1};
  const Matrix<const T> terms{b.data(), q};
  Buffer<T> whole = base, parts = base;
  mix<T>({p, q, r, accumulate, hinted && !accumulate, false, hinted ? r * q : 0}, rows, terms,
         {whole.data(), q});
  const auto term = [&](Index i, Index j, Index k) {
    return double(rows.data[i * rows.row + k * rows.column]) * double(terms[k][j]);
  };
  if (!right("mix", p, q, r, base, accumulate, whole, term)) return false;
  if (mix_packs<T>({p, q, r}, terms)) return true;  // shared out as blocks of the whole
  for (Index begin = 0, end = p / 2; begin < p; begin = end, end = p) {
    mix<T>({end - begin, q, r, accumulate}, {rows.data + begin * rows.row, rows.row, rows.column}, terms,
           {parts.data() + begin * q, q});
  }
  if (!parts.same_bits(whole)) std::printf("mix %ld x %ld x %ld: other bits by halves\n", p, q, r);
  return parts.same_bits(whole);
}

template <class T>
bool dots_are_right(Index p, Index q, Index r, bool accumulate, bool turned) {
  const Buffer<T> a(p * r), b(q * r), base(p * q);
  const Matrix<const T> rows{a.data(), r}, columns{b.data(), r};
  Buffer<T> whole = base, parts = base;
  const auto out = [&](Buffer<T>& c) {
    return turned ? Strided<T>{c.data(), 1, p} : Strided<T>{c.data(), q, 1};
  };
  dots<T>({p, r, q, accumulate}, rows, columns, out(whole));
  const auto term = [&](Index i, Index j, Index k) {
    if (turned) std::swap(i, j);
    return double(rows[i][k]) * double(columns[j][k]);
  };
  if (!right("dots", turned ? q : p, turned ? p : q, r, base, accumulate, whole, term)) return false;
  for (Index begin = 0, end = q / 2; begin < q; begin = end, end = q) {
    const Strided<T> c = out(parts);
    dots<T>({p, r, end - begin, accumulate}, rows, {columns[begin], r},
            {c.data + begin * c.column, c.row, c.column});
  }
  if (!parts.same_bits(whole)) std::printf("dots %ld x %ld x %ld: other bits by halves\n", p, q, r);
  return parts.same_bits(whole);
}

template <class T>
bool all_right(std::string_view product) {
  int turn = 0;
  for (const Index p : kRows) {
    for (const Index q : kColumns) {
      for (const Index r : kTerms) {
        const bool accumulate = turn & 16, turned = turn & 32, hinted = turn & 64;
        turn = (turn * 5 + 3) % 256;
        const bool well = product == "mix" ? mix_is_right<T>(p, q, r, accumulate, turned, hinted)
                                           : dots_are_right<T>(p, q, r, accumulate, turned);
        if (!well) return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const bool right = all_right<float>(arguments[1]) && all_right<double>(arguments[1]);
  if (right) std::puts("right");
  return right ? 0 : 1;
}
