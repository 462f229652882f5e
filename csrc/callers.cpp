#include "callers.h"

#include <algorithm>
#include <atomic>

#include "team.h"

namespace sstkern {

namespace {

// In a forked child too, which has one thread whatever this says.
std::atomic<int64_t> running{0};

// How many calls ran at once lately, and when that was last so, in microseconds. A caller that is between two calls keeps its part so long:
// without it two callers made 3,028 to 4,950 calls a second where one thread each would make 5,295, with it 5,263. Threads that call one
// after the other are never more than one.
constexpr int64_t kMemory = 3'000;
std::atomic<int64_t> most{0}, most_at{0};

int64_t callers_at_start() {
  const int64_t now = microseconds(), together = running.fetch_add(1, std::memory_order_relaxed) + 1;
  const int64_t known = most.load(std::memory_order_relaxed);
  if (together < known && now - most_at.load(std::memory_order_relaxed) < kMemory) return known;
  most.store(together, std::memory_order_relaxed);
  most_at.store(now, std::memory_order_relaxed);
  return together;
}

}  // namespace

CallThreads::CallThreads() {
  const int64_t callers = callers_at_start();
  if (callers == 1 && !paused()) return;
  const int64_t all = most_threads(), part = paused() ? 1 : std::max<int64_t>(1, all / callers);
  if (part != all) before_ = limit_threads(part);
}

CallThreads::~CallThreads() {
  if (before_) end_limit(*before_);
  running.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace sstkern
