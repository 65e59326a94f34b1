// Runs the threads of a block as threads of the host, so that ThreadSanitizer sees every race between lanes.
#pragma once

#include <barrier>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "event.hpp"

namespace emulator {

/// The host threads of one block. Every event is first a meeting of the warp, then (unless it concerns the
/// warp alone) of the block: so that lanes that wait for different things meet and are found, instead of
/// waiting for ever. The barriers order what CUDA orders and nothing else; a lock here would hide races.
class Lanes {
 public:
  /// Runs body(thread) once for each thread in [0, threads); threads is a multiple of the warp size.
  static void run(unsigned threads, const std::function<void(unsigned)>& body) {
    Lanes lanes(threads);
    current() = &lanes;
    std::vector<std::thread> workers;
    workers.reserve(threads);
    for (unsigned thread = 0; thread < threads; ++thread) {
      workers.emplace_back([thread, &body] {
        number() = thread;
        body(thread);
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
    if (event.kind != Event::Kind::warp) lanes.block_.arrive_and_wait();
  }

  /// The number of the calling lane in its block.
  static unsigned self() { return number(); }

 private:
  struct Check {
    const Event* events;
    unsigned first, last;
    void operator()() noexcept { check_same(events, first, last); }
  };

  explicit Lanes(unsigned threads)
      : events_(threads), block_(static_cast<std::ptrdiff_t>(threads), Check{events_.data(), 0, threads}) {
    for (unsigned first = 0; first < threads; first += kWarp) {
      warps_.emplace_back(static_cast<std::ptrdiff_t>(kWarp), Check{events_.data(), first, first + kWarp});
    }
  }

  static Lanes*& current() {
    static Lanes* lanes = nullptr;
    return lanes;
  }

  static unsigned& number() {
    static thread_local unsigned thread = 0;
    return thread;
  }

  std::vector<Event> events_;
  std::barrier<Check> block_;
  std::deque<std::barrier<Check>> warps_;
};

}  // namespace emulator
