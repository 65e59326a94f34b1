// The rows and products of problems/dual_loop.hpp where the scores of a row stay in registers: few classes, on a team whose
// scalar is a few packs. A row of scalars is as many rows of packs, one worked on at a time.
//
// Forward in stages, each over all rows: the operations of a row wait for each other, and a processor looks ahead 250
// instructions, one row from scores to residual and a half of the next. The shorter a stage, the more rows it sees.
#pragma once

#include "core/constant.hpp"
#include "problems/linear_rows.hpp"
#include "problems/linear_span.hpp"

namespace pb::inline PB_ISA {

// Classes: a constant. Rows: a constant, where there are no more of them than of classes, or an Index.
template <class Team, class Loss, class Classes, class Rows>
class DualFew {
 public:
  using T = typename Team::Scalar;
  using Part = typename Team::Part;
  using Lane = typename Part::Lane;
  static constexpr Index kParts = Team::kParts;

  DualFew(const LinearRows<Team, Loss>& rows, const SpanBuffers<T>& span, bool has_bias, Classes classes,
          Rows count)
      : rows_(rows, count),
        gram_(Team::parts(span.gram)),
        z0_(Team::parts(span.z0)),
        gram_bar_(span.gram_bar),
        has_bias_(has_bias),
        classes_(classes),
        count_(count) {}

  // Predictions of w, unless they are known, and the residuals and their sums, unless g is null.
  PB_MERGED void gradient(const T* point, bool known, T* g) const {
    if (!known) {
      for_tiles([&](Index i, auto rows, Index part)
                    PB_MERGED { score(Team::parts(point) + part, i, rows, part); });
      for_rows([&](Index i, Index part) PB_MERGED {
        on_row(rows_.scores(row(i, part)), classes_,
               [&](Row<Part> z) PB_MERGED { Loss::template predict_centred<Part>(z, classes_); });
      });
    }
    if (!g) return;
    for_rows([&](Index i, Index part) PB_MERGED {
      rows_.residual(row(i, part), classes_, {Team::parts(g) + row(i, part), stride()});
    });
    for_classes([&](Index k, Index part) PB_MERGED {
      Team::parts(g)[at(kClasses, k) + part] = has_bias_ ? sum(Team::parts(g) + at(k, 0) + part) : Lane{};
    });
  }

  // U, and what it sends to A, to the bias and to K.
  PB_MERGED void pullback(const Team& team, const T* point, const T* cotangent, T* u, T* point_bar) const {
    for_rows([&](Index i, Index part) PB_MERGED {
      const Lane* const v = Team::parts(cotangent) + part;
      const auto shifted = [&](Index k, Lane) PB_MERGED { return v[at(k, i)] + v[at(kClasses, k)]; };
      const Row<Part> u_i{Team::parts(u) + row(i, part), stride()};
      rows_.pullback(row(i, part), classes_, u_i, shifted);
      if constexpr (kConstantRows) add_to_gram_bar(Team::parts(point) + part, u_i, i, part);
    });
    for_tiles([&](Index i, auto rows, Index part) PB_MERGED {
      Lane sums[decltype(rows)::value][kClasses];
      by_gram(Team::parts(u) + part, i, part, sums);
      Lane* const bar = Team::parts(point_bar) + at(0, i) + part;
      each(rows, [&](Index r)
                     PB_MERGED { each(classes_, [&](Index k) PB_MERGED { bar[at(k, r)] += sums[r][k]; }); });
    });
    if (has_bias_) {
      for_classes([&](Index k, Index part) PB_MERGED {
        Team::parts(point_bar)[at(kClasses, k) + part] += sum(Team::parts(u) + at(k, 0) + part);
      });
    }
    if (!kConstantRows && gram_bar_) {
      team.mix({count_, count_, kClasses, true}, {u, 1, count_}, {point, count_}, {gram_bar_, count_});
    }
  }

 private:
  static constexpr int kClasses = Classes::value;
  static constexpr bool kConstantRows = !std::is_same_v<Rows, Index>;

  // What is packs only: entry (k, i) of a matrix, its first part, and row i of the rows.
  PB_MERGED Index stride() const { return count_ * kParts; }
  PB_MERGED Index at(Index k, Index i) const { return k * stride() + i * kParts; }
  PB_MERGED static Index row(Index i, Index part) { return i * kParts + part; }

  template <class F>
  PB_MERGED void for_rows(F&& f) const {
    for (Index i = 0; i < count_; ++i) {
      for (Index part = 0; part < kParts; ++part) f(i, part);
    }
  }

  template <class F>
  PB_MERGED void for_classes(F&& f) const {
    for (Index k = 0; k < kClasses; ++k) {
      for (Index part = 0; part < kParts; ++part) f(k, part);
    }
  }

  // Over all rows.
  PB_MERGED Lane sum(const Lane* r) const {
    Lane total = r[0];
    for (Index i = 1; i < count_; ++i) total += r[i * kParts];
    return total;
  }

  // f(i, rows, part): rows i .. of one part, as many as a product takes at once.
  template <class F>
  PB_MERGED void for_tiles(F&& f) const {
    constexpr int most = Part::kRows;
    for (Index i = 0; i < count_; i += most) {
      with_merged_constant<most>(count_ - i < most ? count_ - i : most, [&](auto rows) PB_MERGED {
        for (Index part = 0; part < kParts; ++part) f(i, rows, part);
      });
    }
  }

  // sums = sum_j K[i, j] A_j of a few rows i. K is symmetric.
  template <int kRows>
  PB_MERGED void by_gram(const Lane* a, Index i, Index part, Lane (&sums)[kRows][kClasses]) const {
    Part::product(count_, {gram_ + at(i, 0) + part, stride(), kParts}, {a, kParts, stride()}, sums);
  }

  // z_i = sum_j K[i, j] A_j + bias + beta Z0_i
  template <class Few>
  PB_MERGED void score(const Lane* w, Index first, Few rows, Index part) const {
    Lane z[Few::value][kClasses];
    by_gram(w, first, part, z);
    const Lane* const bias = w + at(kClasses, 0);
    each(rows, [&](Index r) PB_MERGED {
      const Index i = first + r;
      each(classes_, [&](Index k) PB_MERGED { z[r][k] += bias[k * kParts]; });
      if (z0_) {
        const Lane beta = bias[kClasses * kParts];
        each(classes_, [&](Index k) PB_MERGED { z[r][k] += beta * z0_[at(k, i) + part]; });
      }
      Loss::template centre<Part>({z[r], 1}, kClasses);
      const Row<Part> to = rows_.scores(row(i, part));
      each(classes_, [&](Index k) PB_MERGED { to.set(k, z[r][k]); });
    });
  }

  // K_bar_i += sum_k u_k A_k, while u is in registers.
  PB_MERGED void add_to_gram_bar(const Lane* a, Row<Part> u, Index i, Index part) const {
    if (!gram_bar_) return;
    Lane sums[1][Rows::value];
    Part::product(classes_, {u.data, 0, u.stride}, {a, stride(), kParts}, sums);
    Lane* const bar = Team::parts(gram_bar_) + at(i, 0) + part;
    each(count_, [&](Index j) PB_MERGED { bar[j * kParts] += sums[0][j]; });
  }

  LinearRows<Part, Loss> rows_;
  const Lane *gram_, *z0_;
  T* gram_bar_;
  bool has_bias_;
  Classes classes_;
  Rows count_;
};

}  // namespace pb::inline PB_ISA
