// How calls from several threads at once share the threads that torch.set_num_threads allows.
#pragma once

#include <cstdint>
#include <optional>

namespace sstkern {

// This thread's call of the engine, for as long as it runs: where n threads have calls at once, each call has an n-th of the threads, one
// at least, for all that it does, torch's own operators too. Were each to have all of them, they would wait for each other at every time
// step. A lone call has all, but one while calls are `paused` (team.h).
class CallThreads {
 public:
  CallThreads();
  ~CallThreads();
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

 private:
  std::optional<int64_t> before_;  // what ends the limit of this thread's, if there is one
};

}  // namespace sstkern
