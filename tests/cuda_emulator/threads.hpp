// Runs the threads of one or more blocks as threads of the host, so that ThreadSanitizer sees every race between lanes.
#pragma once

#include <barrier>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "event.hpp"

namespace emulator {

/// The host threads of the blocks that are alive. Every event is first a meeting of the warp, then (unless it
/// concerns the warp alone) of the block, then of the grid: so that lanes that wait for different things meet
/// and are found, instead of waiting for ever. The barriers order what CUDA orders and nothing else; a lock here would hide races.
class Lanes {
 public:
  /// Runs body() once for each lane of `blocks` blocks side by side; threads is a multiple of the warp size.
  static void run(unsigned blocks, unsigned threads, const std::function<void()>& body) {
    Lanes lanes(blocks, threads);
    current() = &lanes;
    std::vector<std::thread> workers;
    workers.reserve(blocks * threads);
    for (unsigned lane = 0; lane < blocks * threads; ++lane) {
      workers.emplace_back([lane, &body] {
        number() = lane;
        body();
        arrive({Event::Kind::exit, {}});
      });
    }
    for (std::thread& worker : workers) worker.join();
    current() = nullptr;
  }

  /// Called by a lane: comes back when all whom the event concerns have reached it.
  static void arrive(const Event& event) {
    Lanes& lanes = *current();
    lanes.events_[self()] = event;
    lanes.warps_[self() / kWarp].arrive_and_wait();
    if (event.kind == Event::Kind::warp) return;
    lanes.blocks_[self() / lanes.threads_].arrive_and_wait();
    if (event.kind != Event::Kind::block) lanes.grid_.arrive_and_wait();
  }

  /// The number of the calling lane among those alive, block by block.
  static unsigned self() { return number(); }

 private:
  struct Check {
    const Event* events;
    unsigned first, last, stride;
    void operator()() noexcept { check_same(events, first, last, stride); }
  };

  using Barrier = std::barrier<Check>;

  Lanes(unsigned blocks, unsigned threads)
      : threads_(threads),
        events_(blocks * threads),
        grid_(static_cast<std::ptrdiff_t>(events_.size()), check(0, blocks * threads, threads)) {
    for (unsigned first = 0; first < blocks * threads; first += threads)
      blocks_.emplace_back(static_cast<std::ptrdiff_t>(threads), check(first, first + threads, kWarp));
    for (unsigned first = 0; first < blocks * threads; first += kWarp)
      warps_.emplace_back(static_cast<std::ptrdiff_t>(kWarp), check(first, first + kWarp, 1));
  }

  Check check(unsigned first, unsigned last, unsigned stride) const {
    return {events_.data(), first, last, stride};
  }

  static Lanes*& current() {
    static Lanes* lanes = nullptr;
    return lanes;
  }

  static unsigned& number() {
    static thread_local unsigned lane = 0;
    return lane;
  }

  unsigned threads_;
  std::vector<Event> events_;
  Barrier grid_;
  std::deque<Barrier> blocks_, warps_;
};

}  // namespace emulator
