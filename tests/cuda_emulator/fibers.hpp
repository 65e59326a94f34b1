// Runs the threads of one or more blocks as fibers of one host thread: deterministic, fast, made for ASan and UBSan.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#include "event.hpp"

namespace emulator {

/// The fibers of the blocks that are alive. A fiber runs until its next event; a warp goes on when its lanes
/// agree, a block when its warps do, the grid when its blocks do.
class Lanes {
 public:
  /// Runs body() once for each lane of `blocks` blocks side by side; threads is a multiple of the warp size.
  static void run(unsigned blocks, unsigned threads, const std::function<void()>& body) {
    Lanes lanes(blocks, threads, body);
    current() = &lanes;
    lanes.schedule();
    current() = nullptr;
  }

  /// Called by the running fiber: comes back when all whom the event concerns have reached it.
  static void arrive(const Event& event) { current()->suspend(event); }

  /// The number of the running fiber among those alive, block by block.
  static unsigned self() { return current()->running_; }

 private:
  static constexpr std::size_t kStackBytes = 256 * 1024;

  struct Fiber {
    ucontext_t context = {};
    std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    void* fake_stack = nullptr;
  };

  static Lanes*& current() {
    static Lanes* lanes = nullptr;
    return lanes;
  }

  // Stacks outlive the block: allocating 256 of them for each block would fill ASan's quarantine.
  static std::vector<Fiber>& fibers() {
    static std::vector<Fiber> all;
    return all;
  }

  Lanes(unsigned blocks, unsigned threads, const std::function<void()>& body)
      : threads_(threads), all_(blocks * threads), body_(body), events_(all_), runnable_(all_ / kWarp, true) {
    if (fibers().size() < all_) fibers().resize(all_);
    for (unsigned lane = 0; lane < all_; ++lane) prepare(fibers()[lane]);
  }

  static void prepare(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Lanes::enter), 0);
    // ASan's swapcontext wipes the red zones of any stack whose size it reads here, at every switch.
    fiber.context.uc_stack.ss_size = 0;
  }

  void schedule() {
    for (bool sweep_down = false;; sweep_down = !sweep_down) {
      if (step_warps(sweep_down) || release_blocks()) continue;
      check_same(events_.data(), 0, all_, threads_);  // all blocks wait for the grid, or have returned
      if (events_[0].kind == Event::Kind::exit) return;
      runnable_.assign(runnable_.size(), true);
    }
  }

  // Whether any warp could run.
  bool step_warps(bool sweep_down) {
    bool progress = false;
    for (unsigned warp = 0; warp < runnable_.size(); ++warp) {
      if (!runnable_[warp]) continue;
      step_warp(warp * kWarp, sweep_down);
      runnable_[warp] = events_[warp * kWarp].kind == Event::Kind::warp;
      progress = true;
    }
    return progress;
  }

  // Whether any block was waiting for its own barrier; no warp is runnable.
  bool release_blocks() {
    bool progress = false;
    for (unsigned first = 0; first < all_; first += threads_) {
      check_same(events_.data(), first, first + threads_, kWarp);
      if (events_[first].kind != Event::Kind::block) continue;
      for (unsigned lane = first; lane < first + threads_; lane += kWarp) runnable_[lane / kWarp] = true;
      progress = true;
    }
    return progress;
  }

  // Lanes run upwards and downwards in turn, so that code that leans on their order fails in one of the two.
  void step_warp(unsigned first, bool sweep_down) {
    for (unsigned lane = 0; lane < kWarp; ++lane) resume(first + (sweep_down ? kWarp - 1 - lane : lane));
    check_same(events_.data(), first, first + kWarp);
  }

  void resume(unsigned lane) {
    running_ = lane;
    Fiber& fiber = fibers()[lane];
    start_switch(&scheduler_fake_stack_, fiber.stack.get(), kStackBytes);
    swapcontext(&scheduler_, &fiber.context);
    finish_switch(scheduler_fake_stack_, nullptr, nullptr);
  }

  void suspend(const Event& event) {
    Fiber& fiber = fibers()[running_];
    events_[running_] = event;
    const bool last = event.kind == Event::Kind::exit;  // null: ASan frees the fake stack of the fiber
    start_switch(last ? nullptr : &fiber.fake_stack, scheduler_bottom_, scheduler_size_);
    swapcontext(&fiber.context, &scheduler_);
    finish_switch(fiber.fake_stack, &scheduler_bottom_, &scheduler_size_);
  }

  static void enter() {
    Lanes& lanes = *current();
    finish_switch(nullptr, &lanes.scheduler_bottom_, &lanes.scheduler_size_);
    lanes.body_();
    lanes.suspend({Event::Kind::exit, {}});
    fail("a finished fiber was resumed");
  }

  static void start_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom,
                           [[maybe_unused]] std::size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(save, bottom, size);
#endif
  }

  static void finish_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom,
                            [[maybe_unused]] std::size_t* size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
  }

  unsigned threads_, all_;
  const std::function<void()>& body_;
  std::vector<Event> events_;
  std::vector<bool> runnable_;
  unsigned running_ = 0;
  ucontext_t scheduler_ = {};
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  std::size_t scheduler_size_ = 0;
};

}  // namespace emulator
