// What the lanes of a block may wait for, and the rule that they must all wait for the same thing.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <source_location>

namespace emulator {

inline constexpr unsigned kWarp = 32;
inline constexpr int kExitCode = 66;  // of a program that breaks a rule of CUDA

/// One meeting point in the life of a lane: `__syncwarp` and shuffles (warp), `__syncthreads` (block), the
/// barrier of a cooperative launch (grid), its end (exit).
struct Event {
  enum class Kind { warp, block, grid, exit };
  Kind kind = Kind::exit;
  std::source_location site = {};

  /// The same kind of meeting at the same place of the source (several calls inlined from one line count as
  /// one).
  bool operator==(const Event& other) const {
    if (kind != other.kind) return false;
    return kind == Kind::exit || (site.line() == other.site.line() && site.column() == other.site.column() &&
                                  std::strcmp(site.file_name(), other.site.file_name()) == 0);
  }
};

/// Prints the reason and ends the process: nothing that comes after a broken rule can be believed.
[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "cuda emulator: %s\n", reason);
  std::fflush(stderr);
  std::_Exit(kExitCode);
}

inline void describe(char* text, std::size_t size, const Event& event) {
  if (event.kind == Event::Kind::exit) {
    std::snprintf(text, size, "has returned from the kernel");
    return;
  }
  const char* kinds[] = {"warp", "block", "grid"};
  std::snprintf(text, size, "waits in a %s barrier at %s:%u", kinds[static_cast<int>(event.kind)],
                event.site.file_name(), static_cast<unsigned>(event.site.line()));
}

/// Fails unless the events of lanes first, first + stride, ... below last are the same. Lanes of all blocks
/// alive are numbered through.
inline void check_same(const Event* events, unsigned first, unsigned last, unsigned stride = 1) {
  for (unsigned lane = first + stride; lane < last; lane += stride) {
    if (events[lane] == events[first]) continue;
    char one[512], other[512], reason[1200];
    describe(one, sizeof one, events[first]);
    describe(other, sizeof other, events[lane]);
    std::snprintf(reason, sizeof reason, "barrier divergence: thread %u %s, but thread %u %s", first, one,
                  lane, other);
    fail(reason);
  }
}

}  // namespace emulator
