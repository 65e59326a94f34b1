// Numbered pieces of work, shared out among workers: each begins with a share of its own, in order, and then takes what
// others have not begun, from the ends of their shares. A core that is slower than its neighbours, or busy with something
// else, then holds up the others by a piece of work, not by its whole share. Who does a piece changes no result.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/view.hpp"

namespace pb {

// The pieces [begin, end) that nobody has begun; both ends in one word, so that one exchange takes a piece from either.
class alignas(128) Share {  // a pair of cache lines of its own
 public:
  void set(Index begin, Index end) {
    left_.store(pack(static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)),
                std::memory_order_relaxed);
  }

  // The first piece, or -1 if there is none.
  Index take_first() {
    return take([](std::uint32_t& begin, std::uint32_t&) { return begin++; });
  }

  // The last piece, or -1.
  Index take_last() {
    return take([](std::uint32_t&, std::uint32_t& end) { return --end; });
  }

 private:
  static std::uint64_t pack(std::uint32_t begin, std::uint32_t end) {
    return std::uint64_t{begin} << 32 | end;
  }

  // Pieces are numbers: nothing else passes from worker to worker, so no order of memory is asked for.
  template <class F>
  Index take(F&& from) {
    std::uint64_t seen = left_.load(std::memory_order_relaxed);
    for (;;) {
      auto begin = static_cast<std::uint32_t>(seen >> 32), end = static_cast<std::uint32_t>(seen);
      if (begin >= end) return -1;
      const Index piece = from(begin, end);
      if (left_.compare_exchange_weak(seen, pack(begin, end), std::memory_order_relaxed)) return piece;
    }
  }

  std::atomic<std::uint64_t> left_{0};
};

class Shares {
 public:
  // At most 2^32 - 1 pieces.
  Shares(Index pieces, Index workers) : many_(workers > kFew ? workers : 0), workers_(workers) {
    for (Index w = 0; w < workers; ++w) share(w).set(w * pieces / workers, (w + 1) * pieces / workers);
  }

  // f(i) for the pieces of one worker, then for those it takes from others. All workers together do every piece once.
  template <class F>
  void work(Index worker, F&& f) {
    for (Index i; (i = share(worker).take_first()) >= 0;) f(i);
    for (Index k = 1; k < workers_; ++k) {
      Share& other = share((worker + k) % workers_);
      for (Index i; (i = other.take_last()) >= 0;) f(i);
    }
  }

 private:
  static constexpr Index kFew = 16;  // more take memory of the heap

  Share& share(Index w) { return many_.empty() ? few_[w] : many_[w]; }

  std::array<Share, kFew> few_;
  std::vector<Share> many_;
  Index workers_;
};

}  // namespace pb
