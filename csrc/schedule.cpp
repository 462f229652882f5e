#include "schedule.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

namespace sstkern {

namespace {

// With fewer sequences their pieces are dealt out to more lanes, so many at most: four rows keep the multiply-add units busy. Not by the
// number of threads, which may be another one in the backward, whose rows have to be those that the forward saved. Inference of an LSTM, 3%
// of steps reset, one thread, against natural lanes: (1, 512, 64) 0.73 of the time, (1, 512, 256) 0.36, (4, 256, 128) 1.1.
constexpr int64_t kFewRows = 4, kLanes = 16;

void check_kind(const Tensor& lengths) {
  const bool whole = lengths.scalar_type() == ScalarType::Bool && lengths.dim() == 2;
  SSTKERN_CHECK(lengths.is_cpu() && (whole || lengths.scalar_type() == ScalarType::Long),
                "lengths: expected an int64 tensor on the CPU, got ", lengths.scalar_type(), " on ", lengths.device());
}

void check_range(const std::vector<int64_t>& lengths, int64_t most, const char* what) {
  for (size_t b = 0; b < lengths.size(); ++b)
    SSTKERN_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= most, "lengths[", b, "] is ", lengths[b], "; allowed are 0 to ", most,
                        ", the number of ", what);
}

}  // namespace

std::vector<int64_t> lengths_alone(const Tensor& lengths) {
  SSTKERN_CHECK(lengths.dim() == 1 || lengths.dim() == 2, "lengths: expected one length for each sequence, got shape ", lengths.sizes());
  check_kind(lengths);
  if (lengths.scalar_type() == ScalarType::Bool) return std::vector<int64_t>(lengths.size(0), lengths.size(1));
  SSTKERN_CHECK(lengths.dim() == 1 || lengths.size(1) > 0, "lengths: expected one length for each sequence, got shape ", lengths.sizes());
  std::vector<int64_t> alone(lengths.size(0));
  const int64_t* const given = lengths.const_data_ptr<int64_t>();
  const int64_t step = lengths.stride(0);
  for (size_t b = 0; b < alone.size(); ++b) alone[b] = given[static_cast<int64_t>(b) * step];
  return alone;
}

int64_t longest(const Tensor& lengths) {
  const std::vector<int64_t> alone = lengths_alone(lengths);
  return alone.empty() ? 0 : *std::max_element(alone.begin(), alone.end());
}

void check_packed_lengths(const std::optional<Tensor>& lengths, int64_t rows) {
  SSTKERN_CHECK(lengths.has_value(), "lengths: an x of 2 dimensions (rows, features) needs them");
  const std::vector<int64_t> given = lengths_alone(*lengths);
  check_range(given, rows, "rows of x");
  for (size_t b = 1; b < given.size(); ++b)
    SSTKERN_CHECK_VALUE(given[b] <= given[b - 1], "lengths: those of a packed x fall; lengths[", b, "] is ", given[b], " after ",
                        given[b - 1]);
}

BatchSchedule::BatchSchedule(const std::optional<Tensor>& lengths, int64_t steps, int64_t batch)
    : steps_(steps), sequences_(batch), full_(true) {
  if (!lengths.has_value()) {
    active_.assign(steps, batch);
    order_.resize(batch);
    std::iota(order_.begin(), order_.end(), 0);
    length_.assign(batch, steps);
    count_rows();
    return;
  }
  const std::vector<int64_t> given = lengths_alone(*lengths);
  SSTKERN_CHECK(static_cast<int64_t>(given.size()) == batch, "lengths: expected one length for each of ", batch, " sequences, got shape ",
                lengths->sizes());
  check_range(given, steps, "time steps");
  full_ = std::all_of(given.begin(), given.end(), [steps](int64_t length) { return length == steps; });
  if (lengths->dim() == 1) {
    sort(given);
    return;
  }
  const Tensor rows = lengths->contiguous();
  const bool whole = rows.scalar_type() == ScalarType::Bool;
  SSTKERN_CHECK(rows.size(1) == steps + (whole ? 0 : 1), "resets: expected ", steps, " time steps, as x has, got shape ", rows.sizes());
  if (whole)
    cut_sequences(given.data(), rows.const_data_ptr<bool>(), steps, steps);
  else
    cut_sequences(given.data(), rows.const_data_ptr<int64_t>() + 1, 1 + steps, steps);
}

template <class Mark>
void BatchSchedule::cut_sequences(const int64_t* lengths, const Mark* marks, int64_t stride, int64_t steps) {
  before_.assign(steps + 1, 0);
  const auto add = [this](int64_t sequence, int64_t begin, int64_t end) {
    sequence_.push_back(sequence);
    begin_.push_back(begin);
    end_.push_back(end);
  };
  for (int64_t b = 0; b < sequences_; ++b, marks += stride) {
    const int64_t length = lengths[b];
    first_piece_.push_back(static_cast<int64_t>(end_.size()));
    begins_anew_.push_back(length > 0 && marks[0]);
    ++before_[length];
    int64_t from = 0;
    for (int64_t t = 1; t < length; ++t)
      if (marks[t]) {
        add(b, from, t);
        from = t;
      }
    add(b, from, length);
  }
  first_piece_.push_back(static_cast<int64_t>(end_.size()));
  SSTKERN_CHECK_VALUE(states() <= int64_t{kPiece}, "resets: they make ", states(), " pieces; allowed are ", kPiece);
  count_before(steps);
  place(lanes());
}

// Of how many sequences end before a step, how many rows come before it.
void BatchSchedule::count_before(int64_t steps) {
  int64_t going_on = sequences_, rows = 0;
  for (int64_t t = 0; t <= steps; ++t) {
    going_on -= before_[t];
    before_[t] = rows;
    rows += going_on;
  }
}

BatchSchedule::Lanes BatchSchedule::lanes() {
  const int64_t pieces = states();
  Lanes found{std::vector<int64_t>(pieces), first_piece_};
  std::iota(found.pieces.begin(), found.pieces.end(), 0);
  if (sequences_ >= kFewRows || pieces == sequences_) return found;
  const auto length = [this](int64_t number) { return end_[number] - begin_[number]; };
  std::vector<int64_t> longest = found.pieces;
  std::stable_sort(longest.begin(), longest.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
  const int64_t count = std::clamp(kLanes, sequences_, pieces);
  std::vector<std::vector<int64_t>> dealt(count);
  std::priority_queue<std::pair<int64_t, int64_t>> shortest;  // minus how long a lane is, and minus its number
  for (int64_t lane = 0; lane < count; ++lane) shortest.emplace(0, -lane);
  for (const int64_t number : longest) {
    const auto [filled, lane] = shortest.top();
    shortest.pop();
    dealt[-lane].push_back(number);
    shortest.emplace(filled - length(number), lane);
  }
  dealt_ = true;
  found.pieces.clear();
  found.begin.clear();
  for (const std::vector<int64_t>& lane : dealt) {
    found.begin.push_back(static_cast<int64_t>(found.pieces.size()));
    found.pieces.insert(found.pieces.end(), lane.begin(), lane.end());
  }
  found.begin.push_back(pieces);
  return found;
}

void BatchSchedule::place(const Lanes& lanes) {
  const int64_t count = static_cast<int64_t>(lanes.begin.size()) - 1;
  std::vector<int64_t> length(count, 0);
  for (int64_t lane = 0; lane < count; ++lane)
    for (int64_t i = lanes.begin[lane]; i < lanes.begin[lane + 1]; ++i) length[lane] += end_[lanes.pieces[i]] - begin_[lanes.pieces[i]];
  steps_ = count == 0 ? 0 : *std::max_element(length.begin(), length.end());
  sort(length);
  shift_.resize(begin_.size());
  piece_.resize(rows_);
  for (int64_t p = 0; p < count; ++p) {
    int64_t t = 0;
    for (int64_t i = lanes.begin[order_[p]]; i < lanes.begin[order_[p] + 1]; ++i) {
      const int64_t number = lanes.pieces[i];
      shift_[number] = begin_[number] - t;
      const int64_t begin = t, end = end_[number] - shift_[number];
      for (; t < end; ++t) piece_[offset_[t] + p] = static_cast<uint32_t>(number);
      if (begin == end) continue;
      piece_[offset_[begin] + p] |= kPieceBegins;
      piece_[offset_[end - 1] + p] |= kPieceEnds;
    }
  }
}

void BatchSchedule::sort(const std::vector<int64_t>& lengths) {
  int64_t p = static_cast<int64_t>(lengths.size());
  order_.resize(p);
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  for (const int64_t number : order_) length_.push_back(lengths[number]);
  for (int64_t t = 0; t < steps_; ++t) {
    while (p > 0 && length_[p - 1] <= t) --p;
    active_.push_back(p);
  }
  count_rows();
}

BatchSchedule BatchSchedule::span(int64_t begin, int64_t end) const {
  BatchSchedule part;
  part.steps_ = end - begin;
  part.sequences_ = sequences_;
  part.order_ = order_;
  part.active_.assign(active_.begin() + begin, active_.begin() + end);
  for (const int64_t length : length_) part.length_.push_back(std::clamp<int64_t>(length - begin, 0, part.steps_));
  part.full_ = part.length_.empty() || part.length_.back() == part.steps_;
  part.count_rows();
  if (!cut()) return part;
  if (begin < end) part.piece_.assign(piece_.begin() + offset_[begin], piece_.begin() + offset_[begin] + part.rows_);
  part.first_piece_ = first_piece_;
  part.dealt_ = dealt_;
  if (!dealt_) return part;  // of each piece there is nothing to know: many of them in as many spans are many
  part.sequence_ = sequence_;
  part.before_ = before_;
  for (const int64_t shift : shift_) part.shift_.push_back(shift + begin);
  return part;
}

void BatchSchedule::count_rows() {
  rows_ = 0;
  offset_.clear();
  for (const int64_t active : active_) {
    offset_.push_back(rows_);
    rows_ += active;
  }
}

Schedule BatchSchedule::view() const {
  Schedule found{steps_, offset_.data(), active_.data(), order_.data(), length_.data(), nullptr, nullptr, nullptr, nullptr};
  if (!cut()) return found;
  static constexpr uint32_t none = 0;  // for a schedule without rows, which is cut all the same
  found.piece = piece_.empty() ? &none : piece_.data();
  if (!dealt_) return found;
  found.sequence = sequence_.data();
  found.shift = shift_.data();
  found.before = before_.data();
  return found;
}

std::vector<int64_t> BatchSchedule::split(int64_t parts) const {
  std::vector<int64_t> bounds{0};
  int64_t work = 0;
  for (int64_t p = 0; p < batch(); ++p) {
    work += length_[p] + 1;  // + 1: a sequence of length 0 still has its final state to write
    const int64_t done = static_cast<int64_t>(bounds.size());
    if (done < parts && work * parts >= (rows_ + batch()) * done) bounds.push_back(p + 1);
  }
  if (bounds.size() == 1 || bounds.back() != batch()) bounds.push_back(batch());  // one range at least, of nothing
  return bounds;
}

std::vector<std::vector<int64_t>> BatchSchedule::rows_of_groups(int64_t groups) const {
  SSTKERN_CHECK_VALUE(groups > 0 && sequences_ % groups == 0, "groups: ", groups, " do not share ", sequences_, " sequences equally");
  std::vector<std::vector<int64_t>> rows(groups);
  const int64_t each = sequences_ / groups;
  for (int64_t t = 0; t < steps_; ++t)
    for (int64_t p = 0; p < active_[t]; ++p) {
      const int64_t sequence = cut() ? sequence_[piece_[offset_[t] + p] & kPiece] : order_[p];
      rows[sequence / each].push_back(offset_[t] + p);
    }
  return rows;
}

}  // namespace sstkern
