#include "callers.h"

#include <ATen/Parallel.h>

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
#ifdef _OPENMP
  if (callers == 1 && !paused()) return;
  const int all = at::get_num_threads();  // not OpenMP's, which is not yet torch's in a new thread
  const int part = paused() ? 1 : static_cast<int>(std::max<int64_t>(1, all / callers));
  if (part == all) return;
  threads_ = all;
  omp_set_num_threads(part);  // of this thread's calls, at::parallel_for's too
#endif
}

CallThreads::~CallThreads() {
#ifdef _OPENMP
  if (threads_ > 0) omp_set_num_threads(threads_);
#endif
  running.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace sstkern
