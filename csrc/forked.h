// What a forked child of a process with threads needs.
#pragma once

#include <cstdint>
#include <optional>

namespace sstkern {

// fork() copies OpenMP's record of its threads but not the threads, so the child's first parallel region waits for them forever, in
// torch's own operators as in ours. A DataLoader's workers therefore call torch.set_num_threads(1); a call of ours in any other child
// limits its own thread to one for as long as it runs.
class OneThreadIfForked {
 public:
  OneThreadIfForked();
  ~OneThreadIfForked();
  OneThreadIfForked(const OneThreadIfForked&) = delete;
  OneThreadIfForked& operator=(const OneThreadIfForked&) = delete;

 private:
  std::optional<int64_t> before_;  // what ends the limit
};

}  // namespace sstkern
