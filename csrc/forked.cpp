#include "forked.h"

#include <pthread.h>

#include <atomic>
#include <mutex>

#include "team.h"

namespace sstkern {

namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int fork_noted = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// In a forked child torch replaces a pool of its own when a thread first asks for the number of threads, without a lock.
std::mutex& mutex() {
  static std::mutex one;
  return one;
}

}  // namespace

OneThreadIfForked::OneThreadIfForked() {
  if (!forked) return;
  const std::lock_guard<std::mutex> lock(mutex());
  if (most_threads() > 1) before_ = limit_threads(1);
}

OneThreadIfForked::~OneThreadIfForked() {
  if (before_) end_limit(*before_);
}

}  // namespace sstkern
