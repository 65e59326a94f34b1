// Half squared error, summed over the outputs:
//
//   prediction  p = z                        value      1/2 |z - y|^2
//   residual    p - y    = d value / d z     curvature  u
//   targets     -u       = d <residual, u> / d y
#pragma once

#include "losses/rows.hpp"

namespace pb::inline PB_ISA {

struct Squared {
  static constexpr float kAbsent = 0;  // a score that adds nothing to the other outputs

  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane evaluate(Row<Team> z, ConstRow<Team> y,
                                                      typename Team::Lane sigma, Index outputs) {
    return value<Team>(z, y, sigma, outputs);
  }
  template <class Team>
  PB_HD PB_MERGED static BegunValue<Team> begin_value(Row<Team> z, ConstRow<Team> y, Index outputs) {
    using Lane = typename Team::Lane;
    return {value<Team>(z, y, Lane{}, outputs), Lane{}};
  }
  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane finish_value(BegunValue<Team> begun, typename Team::Lane) {
    return begun.total;
  }

  template <class Team>
  PB_HD PB_MERGED static void predict(Row<Team>, Index) {}
  template <class Team>
  PB_HD PB_MERGED static void centre(Row<Team>, Index) {}
  template <class Team>
  PB_HD PB_MERGED static void predict_centred(Row<Team>, Index) {}

  template <class Team>
  PB_HD PB_MERGED static typename Team::Lane value(ConstRow<Team> z, ConstRow<Team> y, typename Team::Lane,
                                                   Index outputs) {
    typename Team::Lane total{};
    for (Index k = 0; k < outputs; ++k) total += (z[k] - y[k]) * (z[k] - y[k]);
    return typename Team::Real(0.5) * total;
  }

  template <class Lane>
  PB_HD PB_MERGED static Lane residual(Lane p, Lane y, Lane) {
    return p - y;
  }

  // out = s * curvature(u); out may be u.
  template <class Team>
  PB_HD PB_MERGED static void curvature(ConstRow<Team>, ConstRow<Team> u, typename Team::Lane s,
                                        typename Team::Lane, Row<Team> out, Index outputs) {
    for (Index k = 0; k < outputs; ++k) out.set(k, s * u[k]);
  }

  // out += s * targets(u).
  template <class Team>
  PB_HD PB_MERGED static void target_cotangent(ConstRow<Team>, ConstRow<Team> u, typename Team::Lane s,
                                               Row<Team> out, Index outputs) {
    for (Index k = 0; k < outputs; ++k) out.set(k, out[k] - s * u[k]);
  }

  // out += s * d value / d y = s (y - z).
  template <class Team>
  PB_HD PB_MERGED static void value_target_cotangent(ConstRow<Team> z, ConstRow<Team> y,
                                                     typename Team::Lane s, Row<Team> out, Index outputs) {
    for (Index k = 0; k < outputs; ++k) out.set(k, out[k] + s * (y[k] - z[k]));
  }
};

}  // namespace pb::inline PB_ISA
