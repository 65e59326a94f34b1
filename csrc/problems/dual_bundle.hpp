// Linear inner problems in dual coordinates, a task per SIMD lane: the recurrence of Lanes::kTasks tasks at once, on
// scalars that hold a number of each, where K is too small to fill a pack with its rows. The features stay as they are:
// each task has a span of its own, which reads and writes every kTasks-th number of the shared buffers.
#pragma once

#include <array>
#include <utility>

#include "problems/dual_loop.hpp"
#include "problems/linear_span.hpp"

namespace pb::inline PB_ISA {

template <class Lanes, class Loss>
class DualBundle {
 public:
  using T = typename Lanes::Scalar;
  using Real = typename Lanes::Real;
  using Member = typename Lanes::Member;  // the team that works on one of the tasks
  using Span = LinearSpan<Member>;
  static constexpr Index kTasks = Lanes::kTasks;

  DualBundle(Arena& arena, const LinearParams<Real>& params, bool reverse)
      : params_(params),
        loop_(arena, params, reverse),
        square_(reverse && params.support.x_bar ? arena.take<Real>(params.support.rows * params.support.rows)
                                                : nullptr),
        spans_(make_spans(arena, reverse, std::make_index_sequence<kTasks>())) {}

  Index size() const { return loop_.size(); }
  const Span& span(Index lane) const { return spans_[lane]; }
  static Real* in_lane(T* p, Index lane) { return p ? reinterpret_cast<Real*>(p) + lane : nullptr; }

  // Scalars of K, which the forward half may leave to the reverse half.
  Index gram_size() const { return params_.support.rows * params_.support.rows; }

  // Lanes beyond the last task repeat it; what they leave is never written. `kept`: where K is left, or null.
  void load(const Lanes& team, Index first, bool reverse, T* kept) {
    if (kept) loop_.put_gram(kept);
    loop_.load(team, params_, first, reverse);
    load_rows(team, params_.support, first, params_.classes, loop_.rows().buffers());
    for (Index lane = 0; lane < kTasks; ++lane) {
      const Index task = first + (lane < team.count ? lane : team.count - 1);
      if (kept) spans_[lane].put_gram(in_lane(kept, lane));
      spans_[lane].load(Member{}, task, reverse, kept && reverse);
    }
  }

  void start(const Lanes& team, T* state, Index buffers) const {
    loop_.start(team, state, buffers);
    for (Index lane = 0; lane < kTasks; ++lane) spans_[lane].start(Member{}, in_lane(state, lane));
  }

  Index predictions_size() const { return loop_.predictions_size(); }
  const T* predictions() const { return loop_.predictions(); }

  void gradient(const Lanes& team, const T* w, T* g, bool wanted, T* known, T* to_keep = nullptr) const {
    loop_.gradient(team, w, g, wanted, known, to_keep);
  }

  void pullback(const Lanes& team, const T* w, const T* v, T* w_bar) { loop_.pullback(team, w, v, w_bar); }

  void store_cotangents(const Lanes& team, Index first, T* w_bar) const {
    for (Index lane = 0; lane < team.count; ++lane) {
      spans_[lane].start_pullback(Member{}, in_lane(w_bar, lane));
      spans_[lane].store_cotangents(Member{});
    }
    store_rows(team, params_.support, first, params_.classes, loop_.rows().buffers());
    loop_.store_cotangents(team, params_, first);
  }

 private:
  template <std::size_t... I>
  std::array<Span, kTasks> make_spans(Arena& arena, bool reverse, std::index_sequence<I...>) const {
    return {Span(arena, params_, buffers(I), reverse)...};
  }

  SpanBuffers<Real> buffers(Index lane) const {
    const SpanBuffers<T> all = loop_.buffers();
    return {all.stride,
            kTasks,
            in_lane(all.gram, lane),
            in_lane(all.z0, lane),
            in_lane(all.gram_bar, lane),
            in_lane(all.z0_bar, lane),
            square_};
  }

  const LinearParams<Real>& params_;
  DualLoop<Lanes, Loss> loop_;
  Real* square_;
  std::array<Span, kTasks> spans_;
};

}  // namespace pb::inline PB_ISA
