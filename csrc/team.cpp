#include "team.h"

#include <thread>

#include "kernels.h"

namespace sstkern {

namespace {

// About 30 microseconds: a time step of a large layer. Then another program has the core that is waited for, and gets this one too.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Barrier::wait() {
  const uint64_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
    if (spins < kSpins)
      pause();
    else
      std::this_thread::yield();
}

void wait(Barrier& barrier) { barrier.wait(); }

}  // namespace sstkern
