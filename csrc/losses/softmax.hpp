// Cross entropy of a softmax with any non-negative targets y, sigma = sum_k y_k (1 for a class label):
//
//   prediction  p = softmax(z)                          value      sigma log sum_k exp z_k - <y, z>
//   residual    sigma p - y          = d value / d z    curvature  sigma (p * u - p <p, u>)
//   targets     <p, u> - u           = d <residual, u> / d y (sigma included)
#pragma once

#include <utility>

#include "core/constant.hpp"
#include "core/math.hpp"
#include "losses/rows.hpp"

namespace pb::inline PB_ISA {

struct Softmax {
  static constexpr float kAbsent = -1e30f;  // a score that adds nothing to the other classes

  // The value; z becomes p.
  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane evaluate(Row<Team> z, ConstRow<Team> y,
                                                      typename Team::Lane sigma, Index classes) {
    const auto begun = begin_value<Team>(z, y, classes);
    return finish_value<Team>(begun, sigma);
  }

  // The same in two stages, first p and what does not take a logarithm.
  template <class Team>
  PB_HD PB_MERGED static BegunValue<Team> begin_value(Row<Team> z, ConstRow<Team> y, Index classes) {
    using Lane = typename Team::Lane;
    const Lane top = maximum<Team>(z, classes);
    Lane inner{};
    const Lane total =
        exponentials(z, top, classes, [&](Index k, Lane shifted) PB_MERGED { inner += y[k] * shifted; });
    const Lane inverse = typename Team::Real(1) / total;
    for (Index k = 0; k < classes; ++k) z.set(k, z[k] * inverse);
    return {total, inner};
  }
  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane finish_value(BegunValue<Team> begun, typename Team::Lane sigma) {
    return sigma * logarithm(begun.total) - begun.inner;  // sigma = sum y: the shift cancels
  }

  // z becomes p.
  template <class Team>
  PB_HD PB_MERGED static void predict(Row<Team> z, Index classes) {
    normalise<Team>(z, maximum<Team>(z, classes), classes);
  }

  // The same in two stages, first z less its largest, then that becomes p.
  template <class Team>
  PB_HD PB_MERGED static void centre(Row<Team> z, Index classes) {
    const typename Team::Lane top = maximum<Team>(z, classes);
    for (Index k = 0; k < classes; ++k) z.set(k, z[k] - top);
  }
  template <class Team>
  PB_HD PB_MERGED static void predict_centred(Row<Team> z, Index classes) {
    normalise<Team>(z, typename Team::Lane{}, classes);
  }

  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane value(ConstRow<Team> z, ConstRow<Team> y,
                                                   typename Team::Lane sigma, Index classes) {
    using Lane = typename Team::Lane;
    const Lane top = maximum(z, classes);
    Lane total{}, inner{};
    for (Index k = 0; k < classes; ++k) {
      const Lane shifted = z[k] - top;
      total += exponential(shifted);
      inner += y[k] * shifted;
    }
    return sigma * logarithm(total) - inner;  // sigma = sum y: the shift cancels
  }

  template <class Lane>
  PB_HD PB_MERGED static Lane residual(Lane p, Lane y, Lane sigma) {
    return sigma * p - y;
  }

  // out = s * curvature(u); out may be u.
  template <class Team>
  PB_HD PB_MERGED static void curvature(ConstRow<Team> p, ConstRow<Team> u, typename Team::Lane s,
                                        typename Team::Lane sigma, Row<Team> out, Index classes) {
    const typename Team::Lane inner = dot(p, u, classes), weight = s * sigma;
    for (Index k = 0; k < classes; ++k) out.set(k, weight * (p[k] * (u[k] - inner)));
  }

  // out += s * targets(u).
  template <class Team>
  PB_HD PB_MERGED static void target_cotangent(ConstRow<Team> p, ConstRow<Team> u, typename Team::Lane s,
                                               Row<Team> out, Index classes) {
    const typename Team::Lane inner = dot(p, u, classes);
    for (Index k = 0; k < classes; ++k) out.set(k, out[k] + s * (inner - u[k]));
  }

  // out += s * d value / d y = s (log sum exp z - z).
  template <class Team>
  PB_HD PB_MERGED static void value_target_cotangent(ConstRow<Team> z, ConstRow<Team>, typename Team::Lane s,
                                                     Row<Team> out, Index classes) {
    using Lane = typename Team::Lane;
    const Lane top = maximum(z, classes);
    Lane total{};
    for (Index k = 0; k < classes; ++k) total += exponential(z[k] - top);
    const Lane log_sum = logarithm(total) + top;
    for (Index k = 0; k < classes; ++k) out.set(k, out[k] + s * (log_sum - z[k]));
  }

 private:
  // z becomes p; `top` is its largest.
  template <class Team>
  PB_HD PB_MERGED static void normalise(Row<Team> z, typename Team::Lane top, Index classes) {
    using Lane = typename Team::Lane;
    const Lane total = exponentials(z, top, classes, [](Index, Lane) {});
    const Lane inverse = typename Team::Real(1) / total;
    for (Index k = 0; k < classes; ++k) z.set(k, z[k] * inverse);
  }

  // z_k becomes exp(z_k - top), where top is the largest; seen(k, z_k - top) is called of each. Returns their sum. As many
  // at once as stay in registers.
  template <class Team, class F>
  PB_HD PB_MERGED static typename Team::Lane exponentials(Row<Team> z, typename Team::Lane top, Index classes,
                                                          F&& seen) {
    using Lane = typename Team::Lane;
    Lane total{};
    Index k = 0;
    if constexpr (requires(Lane(&x)[1]) { falling_exponentials(x); }) {
      constexpr int together = few_classes<Team>();
      const auto take = [&]<int... J>(std::integer_sequence<int, J...>) PB_MERGED {
        Lane x[] = {z[k + J] - top...};
        (seen(k + J, x[J]), ...);
        falling_exponentials(x);
        ((total += x[J], z.set(k + J, x[J])), ...);
      };
      for (; k + together <= classes; k += together) take(std::make_integer_sequence<int, together>());
      with_merged_constant<together - 1>(classes - k, [&](auto rest) PB_MERGED {
        take(std::make_integer_sequence<int, decltype(rest)::value>());
      });
    } else {
      for (; k < classes; ++k) {
        const Lane shifted = z[k] - top, e = exponential(shifted);
        seen(k, shifted);
        total += e;
        z.set(k, e);
      }
    }
    return total;
  }

  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane dot(ConstRow<Team> a, ConstRow<Team> b, Index classes) {
    typename Team::Lane total{};
    for (Index k = 0; k < classes; ++k) total += a[k] * b[k];
    return total;
  }

  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane maximum(ConstRow<Team> z, Index classes) {
    typename Team::Lane top = z[0];
    for (Index k = 1; k < classes; ++k) top = larger(top, z[k]);
    return top;
  }
};

}  // namespace pb::inline PB_ISA
