// Threads that run at once and can wait for each other.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>

#include "kernels.h"

namespace sstkern {

// A point that none of `size` threads passes before all have come to it; to be used again and again. Where another program has the core of
// one of them, all would wait for the system at every time step. So after a wait that was too long the one that waited goes on alone from
// then on, with all parts, and the others leave; and calls after this one have one thread for a while.
class Barrier {
 public:
  // expected: microseconds that parts may differ in by themselves.
  explicit Barrier(int64_t size = 1, int64_t expected = 0);
  Meeting wait(int64_t part);
  // What the latest wait was for this part.
  Meeting meeting(int64_t part) const;

 private:
  int64_t wait_for(uint64_t round) const;  // returns how long it waited, until the round is over or for bound_

  const int64_t size_, bound_;  // microseconds
  // A cache line each: who waits reads only the second.
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> late_{0};                    // waits that were too long
  std::atomic<int64_t> impatient_{-1}, alone_{-1};  // parts, or none
};

// Barrier::wait as the kernels call it (kernels.h).
Meeting wait(Barrier& barrier, int64_t part);

// On a clock that never goes back.
int64_t microseconds();

// How long a thread waits for another before it goes on alone, in microseconds; returns what it was before, and forgets who was late.
int64_t set_patience(int64_t microseconds);

// Whether calls are to have one thread now, since another came late a while ago.
bool paused();

// What a thread does between `Watch` and `done` is its part of some work; then it waits for the others until the Watch ends, and notes
// when they are late.
class Watch {
 public:
  Watch();
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  void done();

 private:
  int64_t busy_, done_ = 0;
};

// at::parallel_for, unless calls are to have one thread.
template <class Run>
void parallel_for(int64_t end, int64_t grain, const Run& run) {
  if (end <= 0) return;
  if (end <= grain || paused()) return run(int64_t{0}, end);
  Watch watch;
  at::parallel_for(0, end, grain, [&](int64_t first, int64_t last) {
    run(first, last);
    if (first == 0) watch.done();  // the caller's own part
  });
}

// Calls run(thread, threads) in up to `most` threads of PyTorch's own pool. at::parallel_for does not promise that its tasks run at once;
// these do.
template <class Run>
void run_team(int64_t most, const Run& run) {
#ifdef _OPENMP
  if (most > 1 && !paused()) {
    Watch watch;
#pragma omp parallel num_threads(static_cast<int>(most))
    {
      const int64_t thread = omp_get_thread_num();
      run(thread, static_cast<int64_t>(omp_get_num_threads()));
      if (thread == 0) watch.done();
    }
    return;
  }
#endif
  run(int64_t{0}, int64_t{1});
}

}  // namespace sstkern
