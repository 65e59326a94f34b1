// A linear model held class-major: W^T as [c, stride] with the features contiguous and padded to whole lanes, then the
// bias [c]. Every product with rows of features then runs along the features.
#pragma once

#include "core/lanes.hpp"

namespace pb::inline PB_ISA {

template <class Team>
class LinearHead {
 public:
  using T = typename Team::Scalar;

  PB_HD LinearHead(Index features, Index classes, bool bias)
      : features_(features), classes_(classes), stride_(round_up(features, Team::kLanes)), bias_(bias) {}

  PB_HD Index classes() const { return classes_; }
  PB_HD Index size() const { return round_up(classes_ * stride_ + classes_, Team::kLanes); }
  PB_HD Index regularised() const { return classes_ * stride_; }  // l2 reaches all but the bias
  PB_HD T* bias(T* head) const { return head + classes_ * stride_; }
  PB_HD const T* bias(const T* head) const { return head + classes_ * stride_; }
  PB_HD bool has_bias() const { return bias_; }
  PB_HD Matrix<T> weight(T* head) const { return {head, stride_}; }
  PB_HD Matrix<const T> weight(const T* head) const { return {head, stride_}; }

  // head (+)= w, given as [D, c]; an absent w counts as zeros.
  PB_HD void read(const Team& team, Matrix<const T> w, T* head, bool accumulate = false) const {
    if (!accumulate) team.for_each(size(), [=](Index i) { head[i] = 0; });
    if (!w) return;
    const Index classes = classes_, features = features_, stride = stride_;
    team.for_pairs(classes, features, [=](Index k, Index j) { head[k * stride + j] += w[j][k]; });
    if (bias_) team.for_each(classes, [=](Index k) { head[classes * stride + k] += w[features][k]; });
  }

  // w = head, as [D, c].
  PB_HD void write(const Team& team, const T* head, Matrix<T> w) const {
    const Index classes = classes_, features = features_, stride = stride_;
    transpose<Team>(team, classes, features, {head, stride}, w);
    if (bias_) team.for_each(classes, [=](Index k) { w[features][k] = head[classes * stride + k]; });
  }

  // Scores [c, score_stride] of `rows` rows of x, without the bias. `rounded`, here and in gather: see Shape.
  template <class Member>
  PB_HD void scores(const Member& member, const T* head, Matrix<const T> x, Index rows, T* out,
                    Index score_stride, bool rounded = false) const {
    member.dots({classes_, features_, rows, false, false, rounded}, weight(head), x, {out, score_stride, 1});
  }

  // head (+)= R X for rows of x with class-major coefficients R [c, stride of r], whose padding to whole lanes is zero.
  // `ahead`: see Shape.
  template <class Member>
  PB_HD void gather(const Member& member, const T* r, Index r_stride, Matrix<const T> x, Index rows, T* head,
                    bool rounded = false, Index ahead = 0, bool accumulate = true) const {
    if (!accumulate) clear_rest(member, head);
    member.mix({classes_, features_, rows, accumulate, false, rounded, ahead}, {r, r_stride, 1}, x,
               weight(head));
    if (bias_) {
      member.row_sums({classes_, round_up(rows, Team::kLanes), 0, accumulate}, {r, r_stride}, bias(head));
    }
  }

  // x_bar (+)= R^T W: what gather and scores send back to the features.
  template <class Member>
  PB_HD void spread(const Member& member, const T* r, Index r_stride, const T* head, Index rows,
                    Matrix<T> x_bar, bool accumulate, bool stream = false) const {
    member.mix({rows, features_, classes_, accumulate, stream}, {r, 1, r_stride}, weight(head), x_bar);
  }

 private:
  // Zeroes all but the weights: the padding of their rows, the bias, its padding.
  template <class Member>
  PB_HD void clear_rest(const Member& member, T* head) const {
    const Index features = features_, stride = stride_, begin = regularised();
    if (stride > features) {
      member.for_pairs(classes_, stride - features,
                       [=](Index k, Index j) { head[k * stride + features + j] = 0; });
    }
    member.for_each(size() - begin, [=](Index i) { head[begin + i] = 0; });
  }

  Index features_, classes_, stride_;
  bool bias_;
};

}  // namespace pb::inline PB_ISA
