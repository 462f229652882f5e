// How threads share a call's time loop.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "schedule.h"
#include "team.h"

namespace sstkern {

// Multiply-adds a thread should have at least: waking one costs about as long as this many take.
constexpr int64_t kThreadWork = 1 << 17;
// Rows of the batch a thread should have at least where it has them to itself: so many keep the multiply-add units busy.
constexpr int64_t kThreadRows = 4;

// What a call's time loop has to do.
struct LoopWork {
  const BatchSchedule& schedule;
  int64_t directions, steps;
  int64_t multiply_adds;  // of a row's products at a time step
  int64_t weight_bytes;   // of the weights of these, of one direction
  int64_t packed;         // elements packed before
};

// Rows of a batch are independent: a thread takes a range of positions through all time steps and waits for nobody. Where that leaves
// threads without rows, several take the same range, each a part of the hidden units.
class Plan {
 public:
  Plan(const LoopWork& work, int64_t threads);

  int64_t threads() const { return together_ * ranges_ * parts_; }

  // Threads that share the hidden units of a range.
  int64_t parts() const { return parts_; }

  // Cuts a direction's ranges anew, so that each has about as many of these rows.
  void share_rows(int64_t direction, const BatchSchedule& schedule);

  // Positions of the largest range.
  int64_t most_rows() const;

  Share share(int64_t thread, int64_t direction) const;

  // Calls run(direction, share) for what falls to a thread: nothing more once another went on alone.
  template <class Run>
  void each_direction(int64_t thread, const Run& run) const {
    for (int64_t direction = thread / parts_ / ranges_; direction < directions_; direction += together_) {
      const Share mine = share(thread, direction);
      const Meeting meeting = mine.barrier ? mine.barrier->meeting(mine.part) : Meeting::together;
      if (meeting == Meeting::leave) return;
      run(direction, meeting == Meeting::alone ? Share{mine.first, mine.count, 0, 1, nullptr, nullptr} : mine);
    }
  }

 private:
  int64_t directions_, together_, parts_, ranges_;  // `together_` directions run at once
  std::vector<std::vector<int64_t>> bounds_;        // of each direction's ranges
  std::vector<std::unique_ptr<Barrier>> barriers_;  // for the threads of each range of each direction
};

// For as many threads as the call is worth.
Plan make_plan(const LoopWork& work);

// How many threads shared the time loop of this thread's latest call.
int64_t latest_threads();
void note_threads(int64_t threads);

// Each thread's memory_for(share), for up to `most` positions.
template <class Memory>
auto thread_memory(const Plan& plan, int64_t most, const Memory& memory_for) {
  std::vector<decltype(memory_for(Share{}))> memory;
  for (int64_t thread = 0; thread < plan.threads(); ++thread) {
    Share share = plan.share(thread, 0);
    share.count = most;
    memory.push_back(memory_for(share));
  }
  return memory;
}

// Runs run(direction, share, memory) for all of the plan, or, where OpenMP has fewer threads to give, of a plan for one. The threads'
// memory is made before: what that may throw could not leave a parallel region.
template <class Memory, class MemoryFor, class Run>
void run_plan(const LoopWork& work, const Plan& plan, std::vector<Memory>& memory, const MemoryFor& memory_for, const Run& run) {
  const auto run_thread = [&](const Plan& plan, int64_t thread) {
    plan.each_direction(thread, [&](int64_t direction, const Share& share) { run(direction, share, memory[thread]); });
  };
  bool complete = false;
  run_team(plan.threads(), [&](int64_t thread, int64_t threads) {
    if (threads != plan.threads()) return;
    if (thread == 0) complete = true;
    run_thread(plan, thread);
  });
  note_threads(complete ? plan.threads() : 1);
  if (complete) return;
  const Plan alone(work, 1);
  memory[0] = memory_for(alone.share(0, 0));
  run_thread(alone, 0);
}

// The same, once.
template <class MemoryFor, class Run>
void run_plan(const LoopWork& work, const Plan& plan, const MemoryFor& memory_for, const Run& run) {
  auto memory = thread_memory(plan, plan.most_rows(), memory_for);
  run_plan(work, plan, memory, memory_for, run);
}

}  // namespace sstkern
