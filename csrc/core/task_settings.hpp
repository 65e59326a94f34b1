// The settings of an inner optimizer for one task, as numbers a step and cotangents a step.
#pragma once

#include "core/setting.hpp"
#include "core/team.hpp"

namespace pb::inline PB_ISA {

template <class Team>
class TaskSettings {
 public:
  using T = typename Team::Scalar;

  PB_HD TaskSettings(const OptimizerParams<typename Team::Real>& params, Index task)
      : params_(params), task_(task) {}

  PB_HD bool has(int i) const { return bool(params_.settings[i].value); }
  PB_HD bool flag(int i) const { return params_.flag(i); }

  // How many steps were taken before step t.
  PB_HD Index count(Index t) const { return params_.start + t; }

  // 0 where the setting is absent.
  PB_HD T get(const Team& team, int i, Index t) const {
    return has(i) ? team.series(params_.settings[i].value, task_)[t] : T{};
  }

  // For one worker of the team.
  PB_HD void set_bar(const Team& team, int i, Index t, T x) const {
    if (params_.settings[i].bar) team.series(params_.settings[i].bar, task_).set(t, x);
  }

 private:
  const OptimizerParams<typename Team::Real>& params_;
  Index task_;
};

}  // namespace pb::inline PB_ISA
