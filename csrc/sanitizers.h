// What ThreadSanitizer has to be told of the threads (`make sanitize`). In any other build it is nothing.
#pragma once

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace sstkern {

#ifdef __SANITIZE_THREAD__

// For code of a parallel region outside of a `Turn`: it may read only what does not change.
#define SSTKERN_BETWEEN_TURNS __attribute__((no_sanitize_thread))

// A parallel region from the outside. The sanitizer does not see OpenMP's fork and join: that a thread's turn comes after what its caller
// did before, and before what its caller does after.
class Region {
 public:
  Region() { __tsan_release(&fork_); }
  ~Region() { __tsan_acquire(&join_); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

 private:
  friend class Turn;
  char fork_ = 0, join_ = 0;  // two: with one, a thread that begins late would come after one that has ended
};

// What one thread does in it.
class Turn {
 public:
  SSTKERN_BETWEEN_TURNS explicit Turn(Region& region) : region_(region) { __tsan_acquire(&region.fork_); }
  SSTKERN_BETWEEN_TURNS ~Turn() { __tsan_release(&region_.join_); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Region& region_;
};

#else

#define SSTKERN_BETWEEN_TURNS

struct Region {
  ~Region() {}  // one that does something, for the compiler's warnings of variables that nobody uses
};

struct Turn {
  explicit Turn(Region&) {}
};

#endif

}  // namespace sstkern
