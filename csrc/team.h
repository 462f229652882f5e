// Threads that run at once and can wait for each other.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <cstdint>

namespace sstkern {

// A point that none of `size` threads passes before all have come to it; to be used again and again.
class Barrier {
 public:
  explicit Barrier(int64_t size = 1) : size_(size) {}
  void wait();

 private:
  const int64_t size_;
  // A cache line each: who waits reads only the second.
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint64_t> round_{0};
};

// Barrier::wait as the kernels call it (kernels.h).
void wait(Barrier& barrier);

// Calls run(thread, threads) in up to `most` threads of PyTorch's own pool. at::parallel_for does not promise that its tasks run at once;
// these do.
template <class Run>
void run_team(int64_t most, const Run& run) {
#ifdef _OPENMP
  if (most > 1) {
#pragma omp parallel num_threads(static_cast<int>(most))
    run(static_cast<int64_t>(omp_get_thread_num()), static_cast<int64_t>(omp_get_num_threads()));
    return;
  }
#endif
  run(int64_t{0}, int64_t{1});
}

}  // namespace sstkern
