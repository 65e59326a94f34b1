// The span of the data: what takes a linear model into dual coordinates and back. With K = X X^T and Z0 = X W0,
//
//   W = beta W0 + X^T A,  bias separate;  a point is (A, bias, beta): [A^T (c x stride) | bias (c) | beta]
//   decode     W of a point;  pullback at W_bar:  A_bar += X W_bar,  beta_bar += <W0, W_bar>,  W0_bar += beta W_bar,
//                                                 X_bar += A W_bar^T
//   end        X_bar += (K_bar + K_bar^T) X + Z0_bar W0^T,  W0_bar += X^T Z0_bar
//
// Here are the features and W0, and nothing of the recurrence: problems/dual_loop.hpp runs that on K and Z0 alone.
#pragma once

#include "core/arena.hpp"
#include "core/lanes.hpp"
#include "problems/linear_data.hpp"
#include "problems/linear_head.hpp"

namespace pb::inline PB_ISA {

// What the recurrence reads of the span, and the cotangents it leaves: entry (k, i) of a matrix is at
// [(k * stride + i) * step]. step is 1, or the number of tasks whose numbers are interleaved.
template <class T>
struct SpanBuffers {
  Index stride, step;
  T *gram, *z0;          // K [n, n] and Z0 [c, n]; z0 is null without W0
  T *gram_bar, *z0_bar;  // null: not wanted
  T* square;             // n * n scalars of scratch; null where step is 1

  PB_HD Strided<T> matrix(T* p) const { return {p, stride * step, step}; }
  PB_HD Strided<const T> matrix(const T* p) const { return {p, stride * step, step}; }
  PB_HD Strided<const T> transposed(const T* p) const { return {p, step, stride * step}; }
};

template <class Team>
class LinearSpan {
 public:
  using T = typename Team::Scalar;

  PB_HD LinearSpan(Arena& arena, const LinearParams<T>& params, const SpanBuffers<T>& buffers, bool reverse)
      : params_(params), head_(params.features, params.classes, params.bias), buffers_(buffers) {
    if (params.w0) w0_ = arena.take<T>(head_.size());
    if (reverse && params.w0_bar) w0_bar_ = arena.take<T>(head_.size());
  }

  PB_HD const LinearHead<Team>& head() const { return head_; }

  // Where K is from now on.
  PB_HD void put_gram(T* gram) { buffers_.gram = gram; }

  // Makes K, unless it is known, and Z0 of one task; zeroes the cotangent of W0.
  PB_HD void load(const Team& team, Index task, bool reverse, bool known = false) {
    team.for_each(1, [=, this](Index) {
      task_ = task;
      x_ = params_.support.x.matrix(task);
      x_bar_ = params_.support.x_bar.matrix(task);
    });
    const Index n = rows(), classes = params_.classes;
    if (buffers_.stride > n) {  // only where step is 1, and K not known: padding stays finite
      fill_zero(team, buffers_.gram, n * buffers_.stride);
      fill_zero(team, buffers_.z0, classes * buffers_.stride);
    }
    if (!known) gram(team, n, params_.features, x_, buffers_.matrix(buffers_.gram));
    if (w0_) {
      head_.read(team, params_.w0.matrix(task), w0_);
      team.dots({classes, params_.features, n}, weights(w0_), x_, buffers_.matrix(buffers_.z0));
    }
    if (reverse) fill_zero(team, w0_bar_, head_.size());
  }

  // The part of the initial point that is not zero.
  PB_HD void start(const Team& team, T* w) const {
    if (!w0_) return;
    const T* const w0_bias = head_.bias(static_cast<const T*>(w0_));
    const Index classes = params_.classes, step = buffers_.step;
    T* const tail = w + bias_offset();
    team.for_each(classes + 1, [=](Index k) { tail[k * step] = k < classes ? w0_bias[k] : T(1); });
  }

  PB_HD void start_pullback(const Team& team, const T* w_bar) const {
    if (!w0_bar_) return;
    const Index step = buffers_.step;
    T* const w0_bias = head_.bias(w0_bar_);
    const T* const tail = w_bar + bias_offset();
    if (head_.has_bias()) team.for_each(params_.classes, [=](Index k) { w0_bias[k] = tail[k * step]; });
    if (buffers_.z0_bar) {
      team.mix({params_.classes, params_.features, rows(), true}, z0_bar(), x_, head_.weight(w0_bar_));
    }
    head_.write(team, w0_bar_, params_.w0_bar.matrix(task_));
  }

  // The model of a point as a LinearHead buffer.
  PB_HD const T* decode(const Team& team, const T* w, T* out) const {
    const T *const w0 = w0_, *const tail = w + bias_offset();
    const Index step = buffers_.step, classes = params_.classes, regularised = head_.regularised();
    const bool zero =
        !w0 && regularised == classes * params_.features;  // W begins at zero and has no padding
    const Index begin = zero ? regularised : 0;
    team.for_each(head_.size() - begin, [=](Index j) {
      const Index i = begin + j;
      out[i] = i < regularised             ? (w0 ? tail[classes * step] * w0[i] : T(0))
               : i < regularised + classes ? tail[(i - regularised) * step]
                                           : T(0);
    });
    team.mix({classes, params_.features, rows(), !zero}, buffers_.matrix(w), x_, head_.weight(out));
    return out;
  }

  // w_bar += what a cotangent of the decoded model sends back; also to X and W0. The `first` of a task writes that of X.
  PB_HD void decode_pullback(const Team& team, const T* w, const T* head_bar, T* w_bar, bool first) const {
    const Index classes = params_.classes, step = buffers_.step;
    T* const tail_bar = w_bar + bias_offset();
    team.dots({classes, params_.features, rows(), true}, weights(head_bar), x_, buffers_.matrix(w_bar));
    if (head_.has_bias()) {
      const T* const bias_bar = head_.bias(head_bar);
      team.for_each(classes, [=](Index k) { tail_bar[k * step] += bias_bar[k]; });
    }
    if (x_bar_) {
      team.mix({rows(), params_.features, classes, !first}, buffers_.transposed(w), weights(head_bar),
               x_bar_);
    }
    if (!w0_) return;
    const T beta_bar = inner(team, head_.regularised(), w0_, head_bar);
    team.for_each(1, [=](Index) { tail_bar[classes * step] += beta_bar; });
    if (w0_bar_) add_scaled(team, head_.regularised(), w[bias_offset() + classes * step], head_bar, w0_bar_);
  }

  // What K_bar and Z0_bar send back to the features.
  PB_HD void store_cotangents(const Team& team) const {
    if (!x_bar_) return;
    const Index n = rows(), features = params_.features;
    team.mix({n, features, n, true}, symmetrised(team), x_, x_bar_);
    if (buffers_.z0_bar) {
      const T* const z0_bar = buffers_.z0_bar;
      team.mix({n, features, params_.classes, true}, buffers_.transposed(z0_bar), weights(w0_), x_bar_);
    }
  }

 private:
  // K_bar + K_bar^T: in place, or out of what is interleaved, of which a product would read a cache line a number.
  PB_HD Strided<const T> symmetrised(const Team& team) const {
    const Index n = rows();
    const Strided<T> k = buffers_.matrix(buffers_.gram_bar);
    const Strided<T> sum = buffers_.square ? Strided<T>{buffers_.square, n, 1} : k;
    team.for_each(n, [=](Index i) {
      for (Index j = 0; j <= i; ++j) {
        sum.data[i * sum.row + j * sum.column] = sum.data[j * sum.row + i * sum.column] =
            k.data[i * k.row + j * k.column] + k.data[j * k.row + i * k.column];
      }
    });
    return {sum.data, sum.row, sum.column};
  }

  PB_HD Index rows() const { return params_.support.rows; }
  PB_HD Index bias_offset() const { return params_.classes * buffers_.stride * buffers_.step; }
  PB_HD Matrix<const T> weights(const T* head) const { return head_.weight(head); }
  PB_HD Strided<const T> z0_bar() const { return buffers_.matrix(static_cast<const T*>(buffers_.z0_bar)); }

  const LinearParams<T>& params_;
  LinearHead<Team> head_;
  SpanBuffers<T> buffers_;
  Index task_ = 0;
  Matrix<const T> x_;
  Matrix<T> x_bar_;
  T *w0_ = nullptr, *w0_bar_ = nullptr;
};

}  // namespace pb::inline PB_ISA
