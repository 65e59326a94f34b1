// cpu/shares.hpp under ThreadSanitizer: every piece is done once, and a worker that stands still holds up nobody.
#include "cpu/shares.hpp"

#include <cstdio>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using pb::Index;

// work(worker), on a thread for each
template <class F>
void on_threads(Index workers, F&& work) {
  std::vector<std::thread> threads;
  for (Index w = 0; w < workers; ++w) threads.emplace_back([&, w] { work(w); });
  for (std::thread& thread : threads) thread.join();
}

bool each_once(Index pieces, Index workers) {
  pb::Shares shares(pieces, workers);
  std::vector<std::atomic<int>> done(pieces);
  on_threads(workers, [&](Index w) { shares.work(w, [&](Index i) { ++done[i]; }); });
  for (const auto& times : done) {
    if (times != 1) return false;
  }
  return true;
}

// The first worker waits in its first piece until all other pieces are done: by the others, or never.
bool others_go_on(Index pieces, Index workers) {
  pb::Shares shares(pieces, workers);
  std::atomic<bool> begun = false;
  std::atomic<Index> done = 0;
  on_threads(workers, [&](Index w) {
    while (w != 0 && !begun) std::this_thread::yield();
    shares.work(w, [&](Index i) {
      begun = true;
      while (i == 0 && done < pieces - 1) std::this_thread::yield();
      ++done;
    });
  });
  return done == pieces;
}

bool own_share_in_order(Index pieces) {
  pb::Shares shares(pieces, 1);
  Index next = 0;
  shares.work(0, [&](Index i) { next = i == next ? next + 1 : -pieces; });
  return next == pieces;
}

}  // namespace

int main(int, char** arguments) {
  const std::string_view test = arguments[1];
  bool right = test == "once" || test == "still" || test == "order";
  for (const Index workers : {1, 2, 3, 16, 17}) {
    for (const Index pieces : {0, 1, 2, 5, 1000}) {
      if (test == "once") right &= each_once(pieces, workers);
      if (test == "still" && workers > 1 && pieces > 0) right &= others_go_on(pieces, workers);
      if (test == "order") right &= own_share_in_order(pieces);
    }
  }
  std::puts(right ? "right" : "wrong");
}
