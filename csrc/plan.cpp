#include "plan.h"

namespace sstkern {

namespace {

thread_local int64_t latest = 0;

// Multiply-adds a thread should have in a time step at least where others share it: they meet once a step.
constexpr int64_t kStepWork = 1 << 14;
// Multiply-adds that a thread makes in a microsecond at least: a fifth of what one core with AVX2 does where weights come from memory.
constexpr int64_t kSlowest = 1500;
// Recurrent weights that every thread can read at every step without harm, in bytes: about a core's second cache, twice.
constexpr int64_t kSmallWeights = 1 << 21;
// With more, threads share hidden units unless each has this many rows for every weight it reads.
constexpr int64_t kManyRows = 48;

}  // namespace

Plan::Plan(const LoopWork& work, int64_t threads) : directions_(work.directions), together_(threads % directions_ == 0 ? directions_ : 1) {
  const int64_t each = threads / together_;
  const bool large = work.weight_bytes > kSmallWeights;
  int64_t ranges = std::clamp<int64_t>(work.schedule.batch() / (large ? kManyRows : kThreadRows), 1, each);
  while (each % ranges != 0) --ranges;
  parts_ = each / ranges;
  const int64_t step = work.schedule.rows() * work.multiply_adds / (std::max<int64_t>(1, work.steps) * ranges);
  if (!kAtOnce || step < parts_ * kStepWork) {
    parts_ = 1;
    ranges = each;
  }
  bounds_.assign(directions_, work.schedule.split(ranges));
  ranges_ = static_cast<int64_t>(bounds_[0].size()) - 1;
  const int64_t expected = step / kSlowest;
  for (int64_t i = 0; i < together_ * ranges_; ++i) barriers_.push_back(std::make_unique<Barrier>(parts_, expected));
}

void Plan::share_rows(int64_t direction, const BatchSchedule& schedule) {
  bounds_[direction] = schedule.split(ranges_);
  bounds_[direction].resize(ranges_ + 1, schedule.batch());  // the last ranges may be empty
}

int64_t Plan::most_rows() const {
  int64_t most = 1;
  for (const std::vector<int64_t>& bounds : bounds_)
    for (int64_t i = 0; i < ranges_; ++i) most = std::max(most, bounds[i + 1] - bounds[i]);
  return most;
}

Share Plan::share(int64_t thread, int64_t direction) const {
  const int64_t team = thread / parts_, range = team % ranges_;
  const std::vector<int64_t>& bounds = bounds_[direction];
  Barrier* const barrier = parts_ > 1 ? barriers_[team].get() : nullptr;
  return {bounds[range], bounds[range + 1] - bounds[range], thread % parts_, parts_, barrier, wait};
}

Plan make_plan(const LoopWork& work) {
  // Packing an element takes about as long as four multiply-adds.
  const int64_t all = work.directions * (work.schedule.rows() * work.multiply_adds + 4 * work.packed);
  return Plan(work, std::clamp<int64_t>(all / kThreadWork, 1, in_parallel() ? 1 : most_threads()));
}

int64_t latest_threads() { return latest; }
void note_threads(int64_t threads) { latest = threads; }

}  // namespace sstkern
