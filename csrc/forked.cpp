#include "forked.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>
#include <mutex>

namespace sstkern {

namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int fork_noted = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// In a forked child torch replaces a pool of its own when it sets or first asks for the number of threads, without a lock.
std::mutex& mutex() {
  static std::mutex one;
  return one;
}

}  // namespace

OneThreadIfForked::OneThreadIfForked() {
  if (!forked) return;
  const std::lock_guard<std::mutex> lock(mutex());
  threads_ = at::get_num_threads();
  if (threads_ > 1) at::set_num_threads(1);
}

OneThreadIfForked::~OneThreadIfForked() {
  if (threads_ == 1) return;
  const std::lock_guard<std::mutex> lock(mutex());
  at::set_num_threads(threads_);
}

}  // namespace sstkern
