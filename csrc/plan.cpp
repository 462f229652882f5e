#include "plan.h"

#include <atomic>

namespace sstkern {

namespace {

std::atomic<int64_t> latest{0};

// Multiply-adds a thread should have in a time step at least where others share it: they meet once a step.
constexpr int64_t kStepWork = 1 << 14;
// Multiply-adds that a thread makes in a microsecond at least: a fifth of what one core with AVX2 does where weights come from memory.
constexpr int64_t kSlowest = 1500;
// Recurrent weights that every thread can read at every step without harm, in bytes: about a core's second cache, twice.
constexpr int64_t kSmallWeights = 1 << 21;
// With more, threads share hidden units unless each has this many rows for every weight it reads.
constexpr int64_t kManyRows = 48;

}  // namespace

template <class T>
Plan::Plan(const Arguments<T>& a, int64_t threads)
    : directions_(a.size.directions), together_(threads % directions_ == 0 ? directions_ : 1) {
  const int64_t each = threads / together_;
  const bool large = a.gates() * a.size.output * static_cast<int64_t>(sizeof(T)) > kSmallWeights;
  int64_t ranges = std::clamp<int64_t>(a.size.batch / (large ? kManyRows : kThreadRows), 1, each);
  while (each % ranges != 0) --ranges;
  parts_ = each / ranges;
  const int64_t step = a.schedule.rows() * a.gates() * a.size.output / (std::max<int64_t>(1, a.size.steps) * ranges);
  if (step < parts_ * kStepWork) {
    parts_ = 1;
    ranges = each;
  }
  bounds_ = a.schedule.split(ranges);
  const int64_t expected = step / kSlowest;
  for (int64_t i = 0; i < together_ * this->ranges(); ++i) barriers_.push_back(std::make_unique<Barrier>(parts_, expected));
}

int64_t Plan::most_rows() const {
  int64_t most = 1;
  for (int64_t i = 0; i < ranges(); ++i) most = std::max(most, bounds_[i + 1] - bounds_[i]);
  return most;
}

Share Plan::share(int64_t thread) const {
  const int64_t team = thread / parts_, range = team % ranges();
  Barrier* const barrier = parts_ > 1 ? barriers_[team].get() : nullptr;
  return {bounds_[range], bounds_[range + 1] - bounds_[range], thread % parts_, parts_, barrier, wait};
}

template <class T>
Plan make_plan(const Arguments<T>& a) {
  // Packing an element takes about as long as four multiply-adds.
  const int64_t work = a.size.directions * a.gates() * (a.schedule.rows() * a.size.output + 4 * (a.size.input + a.size.output));
  return Plan(a, std::clamp<int64_t>(work / kThreadWork, 1, at::in_parallel_region() ? 1 : at::get_num_threads()));
}

int64_t latest_threads() { return latest; }
void note_threads(int64_t threads) { latest = threads; }

template Plan::Plan(const Arguments<float>&, int64_t);
template Plan::Plan(const Arguments<double>&, int64_t);
template Plan make_plan(const Arguments<float>&);
template Plan make_plan(const Arguments<double>&);

}  // namespace sstkern
