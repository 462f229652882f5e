#include "gradients.h"

#include <algorithm>
#include <memory>

#include "packing.h"
#include "plan.h"

namespace sstkern {

namespace {

// Rows that are added one after the other: their sums are then added among themselves, and so are these.
constexpr size_t kSumRun = 16;
// Columns that are summed at once: theirs of a run stay in the first cache.
constexpr int64_t kSumColumns = 256;

}  // namespace

template <class T>
void all_weight_gradients(const Products<T>& products, const T* left, int64_t rows, int64_t gates,
                          const std::vector<WeightGradient<T>>& weights, bool accumulate) {
  const int64_t count = static_cast<int64_t>(weights.size());
  int64_t columns = 0;
  for (const WeightGradient<T>& weight : weights) columns += weight.columns;
  constexpr int64_t block = 24;  // gates: whole tiles, whatever their height
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, block * rows * columns));
  parallel_for((gates + block - 1) / block, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> work(new T[products.gradient_work(weights.data(), count)]);
    products.weight_gradients(left, gates, rows, weights.data(), count, begin * block, std::min(gates, end * block), accumulate,
                              work.get());
  });
}

namespace {

// A group's rows are brought together.
template <class T>
void one_group(const Products<T>& products, const T* left, int64_t gates, const std::vector<WeightGradient<T>>& weights,
               const std::vector<int64_t>& rows, int64_t group, T* work) {
  const int64_t count = static_cast<int64_t>(weights.size());
  std::vector<T> mine;
  mine.reserve(rows.size() * gates);
  for (const int64_t row : rows) mine.insert(mine.end(), left + row * gates, left + (row + 1) * gates);
  std::vector<std::vector<const T*>> right(count);
  std::vector<WeightGradient<T>> of_group;
  for (int64_t w = 0; w < count; ++w) {
    for (const int64_t row : rows) right[w].push_back(weights[w].right[row]);
    const int64_t size = gates * weights[w].columns;
    of_group.push_back({right[w].data(), weights[w].columns, weights[w].out + group * size});
    if (rows.empty()) std::fill_n(of_group.back().out, size, T(0));
  }
  products.weight_gradients(mine.data(), gates, static_cast<int64_t>(rows.size()), of_group.data(), count, 0, gates, false, work);
}

// to[r] = or += what a direction's gates pass on to x, for rows begin..end-1.
template <class T>
void add_input_gradient(const Arguments<T>& a, const T* from, T* const* to, int64_t begin, int64_t end, const Panels& panels,
                        const T* packed, bool first) {
  const int64_t count = end - begin, input = a.size.input;
  std::vector<const T*> rows(count);
  for (int64_t r = 0; r < count; ++r) rows[r] = from + (begin + r) * a.gates();
  const std::unique_ptr<T[]> room(new T[a.products.factor_room(kBlockRows, a.gates())]);
  if (first) {
    a.products.plain_product(panels, rows.data(), to + begin, count, a.gates(), input, 0, panels.count, packed, false, room.get());
    return;
  }
  // Summed up first and then added, so that dx is the sum of what each direction alone has, bit for bit.
  const std::unique_ptr<T[]> sums(new T[count * input]);
  std::vector<T*> sum_rows(count);
  for (int64_t r = 0; r < count; ++r) sum_rows[r] = sums.get() + r * input;
  a.products.plain_product(panels, rows.data(), sum_rows.data(), count, a.gates(), input, 0, panels.count, packed, false, room.get());
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < input; ++i) to[begin + r][i] += sum_rows[r][i];
}

}  // namespace

template <class T>
void grouped_weight_gradients(const Products<T>& products, const T* left, int64_t gates, const std::vector<WeightGradient<T>>& weights,
                              const Groups& groups) {
  // Not in a Watch: groups may have few rows or many.
  in_threads(static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> work(new T[products.gradient_work(weights.data(), static_cast<int64_t>(weights.size()))]);
    for (int64_t group = begin; group < end; ++group) one_group(products, left, gates, weights, groups[group], group, work.get());
  });
}

template <class T>
void input_gradient(const Arguments<T>& a, const T* dgates, const std::vector<T*>& to, const T* packed, bool accumulate) {
  const int64_t grain = std::max(kThreadRows, kThreadWork / std::max<int64_t>(1, a.gates() * a.size.input));
  parallel_for(static_cast<int64_t>(to.size()), grain, [&](int64_t begin, int64_t end) {
    add_input_gradient(a, dgates, to.data(), begin, end, input_panels(a), packed, !accumulate);
  });
}

template <class T>
void weight_gradients(const Arguments<T>& a, const RowsOf<T>& left, const std::vector<WeightGradient<T>>& weights,
                      const std::optional<Groups>& groups, bool accumulate) {
  if (weights.empty()) return;
  if (groups)
    grouped_weight_gradients(a.products, left.first, left.columns, weights, *groups);
  else
    all_weight_gradients(a.products, left.first, left.rows, left.columns, weights, accumulate);
}

template <class T>
void sum_rows(const std::vector<const T*>& rows, int64_t columns, T* to) {
  std::vector<T> run(columns), of_runs(columns);
  const auto add = [columns](const T* from, T* sum) {
    for (int64_t i = 0; i < columns; ++i) sum[i] += from[i];
  };
  const auto move = [&add](std::vector<T>& from, T* sum) {
    add(from.data(), sum);
    std::fill(from.begin(), from.end(), T(0));
  };
  std::fill_n(to, columns, T(0));
  for (size_t r = 0; r < rows.size(); ++r) {
    add(rows[r], run.data());
    if (r % kSumRun == kSumRun - 1) move(run, of_runs.data());
    if (r % (kSumRun * kSumRun) == kSumRun * kSumRun - 1) move(of_runs, to);
  }
  add(of_runs.data(), to);
  add(run.data(), to);
}

template <class T>
void grouped_row_sums(const T* left, int64_t columns, const Groups& groups, T* to) {
  in_threads(static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      std::vector<const T*> rows;
      for (const int64_t row : groups[group]) rows.push_back(left + row * columns);
      sum_rows(rows, columns, to + group * columns);
    }
  });
}

template <class T>
void row_sums(const RowsOf<T>& left, const std::optional<Groups>& groups, bool accumulate, T* to) {
  if (groups) return grouped_row_sums(left.first, left.columns, *groups, to);
  parallel_for((left.columns + kSumColumns - 1) / kSumColumns,
               std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, left.rows * kSumColumns)), [&](int64_t begin, int64_t end) {
                 std::vector<const T*> rows(left.rows);
                 std::vector<T> sums(kSumColumns);
                 for (int64_t column = begin * kSumColumns; column < std::min(left.columns, end * kSumColumns); column += kSumColumns) {
                   const int64_t count = std::min(kSumColumns, left.columns - column);
                   for (int64_t r = 0; r < left.rows; ++r) rows[r] = left.first + r * left.columns + column;
                   sum_rows(rows, count, sums.data());
                   for (int64_t i = 0; i < count; ++i) to[column + i] = accumulate ? to[column + i] + sums[i] : sums[i];
                 }
               });
}

#define SSTKERN_INSTANTIATE(T)                                                                                                         \
  template void all_weight_gradients(const Products<T>&, const T*, int64_t, int64_t, const std::vector<WeightGradient<T>>&, bool);     \
  template void grouped_weight_gradients(const Products<T>&, const T*, int64_t, const std::vector<WeightGradient<T>>&, const Groups&); \
  template void sum_rows(const std::vector<const T*>&, int64_t, T*);                                                                   \
  template void grouped_row_sums(const T*, int64_t, const Groups&, T*);                                                                \
  template void input_gradient(const Arguments<T>&, const T*, const std::vector<T*>&, const T*, bool);                                 \
  template void weight_gradients(const Arguments<T>&, const RowsOf<T>&, const std::vector<WeightGradient<T>>&,                         \
                                 const std::optional<Groups>&, bool);                                                                  \
  template void row_sums(const RowsOf<T>&, const std::optional<Groups>&, bool, T*);
SSTKERN_INSTANTIATE(float)
SSTKERN_INSTANTIATE(double)
#undef SSTKERN_INSTANTIATE

}  // namespace sstkern
