#include "team.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

#include "tensor.h"

namespace sstkern {

namespace {

// Looks at the clock after so many, a few microseconds.
constexpr int kSpins = 100;
// Longer than an interrupt keeps a thread, shorter than the milliseconds for which the system runs another program. To yield before would
// give those milliseconds to whoever else wants this core.
std::atomic<int64_t> patience{300};

// Calls that two threads would share have one for so many times as long as one was waited for, so that trying again takes a twentieth of
// the time; with more threads, which lose more that way, for less.
constexpr int64_t kPause = 20, kShortest = 5'000, kLongest = 5'000'000;
std::atomic<int64_t> pause_end{0};

// That this thread has run.
int64_t busy_microseconds() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec time{};
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return int64_t{time.tv_sec} * 1'000'000 + time.tv_nsec / 1000;
#endif
  return 0;
}

void note_late(int64_t waited, int64_t threads) {
  const int64_t pause = std::clamp(kPause * waited, kShortest, kLongest) / std::max<int64_t>(1, threads - 1);
  pause_end.store(microseconds() + pause, std::memory_order_relaxed);
}

int64_t torchs_threads() {
  uint32_t threads = 1;
  must(torch_get_num_threads(&threads));
  return threads;
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

#ifdef _OPENMP
bool in_parallel() { return omp_in_parallel(); }
int64_t most_threads() { return torchs_threads(); }  // not OpenMP's, which is not yet PyTorch's in a new thread

int64_t limit_threads(int64_t most) {
  const int64_t before = most_threads();
  omp_set_num_threads(static_cast<int>(most));  // of this thread's calls, those of PyTorch's own operators too
  return before;
}

void end_limit(int64_t before) { omp_set_num_threads(static_cast<int>(before)); }
#else
namespace {

thread_local int64_t limit = std::numeric_limits<int64_t>::max();

}  // namespace

// As the OpenMP says that PyTorch itself may bring.
bool in_parallel() {
  static const auto theirs = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_in_parallel"));
  return theirs && theirs();
}

int64_t most_threads() { return std::min<int64_t>(torchs_threads(), limit); }
int64_t limit_threads(int64_t most) { return std::exchange(limit, most); }
void end_limit(int64_t before) { limit = before; }
#endif

void torch_threads(int64_t end, int64_t grain, void (*run)(int64_t, int64_t, void*), void* given) {
  struct Tasks {
    void (*run)(int64_t, int64_t, void*);
    void* given;
    std::mutex mutex;
    std::exception_ptr error;  // which PyTorch's function would print, and return as a number
  } tasks{run, given, {}, nullptr};
  const auto task = [](int64_t first, int64_t last, void* all) {
    auto& [run, given, mutex, error] = *static_cast<Tasks*>(all);
    try {
      run(first, last, given);
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  };
  if (!kAtOnce) grain = std::max(grain, (end + most_threads() - 1) / most_threads());
  const AOTITorchError failed = torch_parallel_for(0, end, grain, task, &tasks);
  if (tasks.error) std::rethrow_exception(tasks.error);
  must(failed);
}

int64_t microseconds() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

int64_t Barrier::wait_for(uint64_t round) const {
  const int64_t start = microseconds();
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    pause();
    if (spins % kSpins == 0 && microseconds() - start >= bound_) break;
  }
  return microseconds() - start;
}

Meeting Barrier::wait(int64_t part) {
  const uint64_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    alone_.store(impatient_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return meeting(part);
  }
  for (int spins = 0; spins < kSpins; ++spins) {
    if (round_.load(std::memory_order_acquire) != round) return meeting(part);
    pause();
  }
  const int64_t start = microseconds();
  if (wait_for(round) < bound_) return meeting(part);
  // As often as others would leave: one slow step is not worth the work of many threads.
  const bool enough = late_.fetch_add(1, std::memory_order_relaxed) + 2 >= size_;
  int64_t none = -1;
  if (enough) impatient_.compare_exchange_strong(none, part, std::memory_order_relaxed);
  while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
  if (enough) note_late(microseconds() - start, size_);
  return meeting(part);
}

Meeting Barrier::meeting(int64_t part) const {
  const int64_t alone = alone_.load(std::memory_order_relaxed);
  if (alone < 0) return Meeting::together;
  return alone == part ? Meeting::alone : Meeting::leave;
}

Barrier::Barrier(int64_t size, int64_t expected) : size_(size), bound_(patience > 0 ? std::max<int64_t>(patience, expected) : 0) {}

Meeting wait(Barrier& barrier, int64_t part) { return barrier.wait(part); }

int64_t set_patience(int64_t microseconds) {
  pause_end = 0;
  return patience.exchange(microseconds);
}

bool paused() {
  const int64_t end = pause_end.load(std::memory_order_relaxed);
  return end != 0 && microseconds() < end;
}

Watch::Watch() : busy_(busy_microseconds()) {}

void Watch::done() {
  busy_ = busy_microseconds() - busy_;
  done_ = microseconds();
}

Watch::~Watch() {
  if (done_ == 0) return;  // an exception
  // The others' parts may take as long again as this one.
  const int64_t waited = microseconds() - done_;
  if (waited > std::max(patience.load(std::memory_order_relaxed), busy_)) note_late(waited, most_threads());
}

}  // namespace sstkern
