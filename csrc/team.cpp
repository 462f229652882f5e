#include "team.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace sstkern {

namespace {

// About 30 microseconds: a time step of a large layer. Then another program has the core that is waited for, and gets this one too.
constexpr int kSpins = 1000;
// Longer than an interrupt keeps a thread, shorter than the milliseconds for which the system runs another program.
std::atomic<int64_t> patience{300};

// Calls that two threads would share have one for so many times as long as one was waited for, so that trying again takes a twentieth of
// the time; with more threads, which lose more that way, for less.
constexpr int64_t kPause = 20, kShortest = 20'000, kLongest = 5'000'000;
std::atomic<int64_t> pause_end{0};

int64_t microseconds() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

void note_late(int64_t waited, int64_t threads) {
  const int64_t pause = std::clamp(kPause * waited, kShortest, kLongest) / std::max<int64_t>(1, threads - 1);
  pause_end.store(microseconds() + pause, std::memory_order_relaxed);
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

bool Barrier::wait_for(uint64_t round) const {
  const int64_t most = patience.load(std::memory_order_relaxed);
  for (int spins = 0; spins < kSpins && most > 0; ++spins) {
    if (round_.load(std::memory_order_acquire) != round) return true;
    pause();
  }
  const int64_t now = microseconds();
  // No shorter than two time steps took so far: parts may differ.
  const int64_t bound = most > 0 ? std::max(most, 2 * (now - start_) / static_cast<int64_t>(round + 1)) : 0;
  while (round_.load(std::memory_order_acquire) == round) {
    if (microseconds() - now >= bound) return false;
    std::this_thread::yield();
  }
  return true;
}

Barrier::Barrier(int64_t size) : size_(size), start_(size > 1 ? microseconds() : 0) {}

Meeting Barrier::wait(int64_t part) {
  const uint64_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    alone_.store(impatient_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
  } else if (!wait_for(round)) {
    int64_t none = -1;
    // As often as others would leave: one slow step is not worth the work of many threads.
    const bool enough = late_.fetch_add(1, std::memory_order_relaxed) + 2 >= size_;
    if (enough) impatient_.compare_exchange_strong(none, part, std::memory_order_relaxed);
    const int64_t start = microseconds();
    while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
    if (enough) note_late(microseconds() - start, size_);
  }
  return meeting(part);
}

Meeting Barrier::meeting(int64_t part) const {
  const int64_t alone = alone_.load(std::memory_order_relaxed);
  if (alone < 0) return Meeting::together;
  return alone == part ? Meeting::alone : Meeting::leave;
}

Meeting wait(Barrier& barrier, int64_t part) { return barrier.wait(part); }

int64_t set_patience(int64_t microseconds) {
  pause_end = 0;
  return patience.exchange(microseconds);
}

bool paused() {
  const int64_t end = pause_end.load(std::memory_order_relaxed);
  return end != 0 && microseconds() < end;
}

Watch::Watch() : start_(microseconds()) {}

void Watch::done() { done_ = microseconds(); }

Watch::~Watch() {
  if (done_ == 0) return;  // an exception
  // No longer than this thread's own part took: the parts may differ.
  const int64_t waited = microseconds() - done_;
  if (waited > std::max(patience.load(std::memory_order_relaxed), done_ - start_)) note_late(waited, at::get_num_threads());
}

#ifdef _OPENMP
OneThreadForAWhile::OneThreadForAWhile() {
  if (!paused()) return;
  threads_ = at::get_num_threads();  // not OpenMP's, which is not yet torch's in a new thread
  omp_set_num_threads(1);            // of this thread's calls, at::parallel_for's too
}

OneThreadForAWhile::~OneThreadForAWhile() {
  if (threads_ > 0) omp_set_num_threads(threads_);
}
#else
OneThreadForAWhile::OneThreadForAWhile() = default;
OneThreadForAWhile::~OneThreadForAWhile() = default;
#endif

}  // namespace sstkern
