// Threads that run at once and can wait for each other.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <cstdint>

#include "kernels.h"
#include "sanitizers.h"

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

// Whether threads of a team run at once, and so can wait for each other.
#ifdef _OPENMP
constexpr bool kAtOnce = true;
#else
constexpr bool kAtOnce = false;
#endif

// Whether this thread runs a part of a parallel region already.
bool in_parallel();

// How many threads a call of this thread may have: PyTorch's number, or fewer.
int64_t most_threads();
// Has it be so many, and returns what ends that again.
int64_t limit_threads(int64_t most);
void end_limit(int64_t before);

// PyTorch's parallel_for as its library has it, not its header, which has no threads where it is compiled without OpenMP.
void torch_threads(int64_t end, int64_t grain, void (*run)(int64_t first, int64_t last, void* given), void* given);

template <class Run>
void in_threads(int64_t end, int64_t grain, const Run& run) {
  Region region;
  auto part = [&](int64_t first, int64_t last) SSTKERN_BETWEEN_TURNS {
    const Turn turn(region);
    run(first, last);
  };
  const auto call = [](int64_t first, int64_t last, void* given)
                        SSTKERN_BETWEEN_TURNS { (*static_cast<decltype(part)*>(given))(first, last); };
  torch_threads(end, grain, call, &part);
}

// The same, unless calls are to have one thread.
template <class Run>
void parallel_for(int64_t end, int64_t grain, const Run& run) {
  if (end <= 0) return;
  if (end <= grain || paused()) return run(int64_t{0}, end);
  Watch watch;
  in_threads(end, grain, [&](int64_t first, int64_t last) {
    run(first, last);
    if (first == 0) watch.done();  // the caller's own part
  });
}

// Calls run(thread, threads) in up to `most` threads of PyTorch's own pool. Its parallel_for does not promise that its tasks run at once;
// with OpenMP these do.
template <class Run>
SSTKERN_BETWEEN_TURNS void run_team(int64_t most, const Run& run) {
  if (most <= 1 || paused()) return run(int64_t{0}, int64_t{1});
  Watch watch;
#ifdef _OPENMP
  Region region;
#pragma omp parallel num_threads(static_cast<int>(most))
  {
    const Turn turn(region);
    const int64_t thread = omp_get_thread_num();
    run(thread, static_cast<int64_t>(omp_get_num_threads()));
    if (thread == 0) watch.done();
  }
#else
  in_threads(most, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) run(thread, most);
    if (first == 0) watch.done();
  });
#endif
}

}  // namespace sstkern
