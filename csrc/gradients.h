// What comes after the backward's time loop, of all time steps or of some: every gradient is one product, or one sum, over their rows.
#pragma once

#include <optional>
#include <vector>

#include "arguments.h"

namespace sstkern {

// The rows of each share of the batch that has weight gradients of its own.
using Groups = std::vector<std::vector<int64_t>>;

// What a direction passes on to x: its gates' gradients `dgates` (rows, .) times its input weights, packed by pack_plain in
// input_panels. to[r] = or += that.
template <class T>
void input_gradient(const Arguments<T>& a, const T* dgates, const std::vector<T*>& to, const T* packed, bool accumulate);

template <class T>
Panels input_panels(const Arguments<T>& a) {
  return a.products.plain_panels(a.size.input, 1);
}

// Gradients of weights whose products' gradients are `left`, `gates` numbers for each of `rows` rows; added to what is there if wanted.
template <class T>
void all_weight_gradients(const Products<T>& products, const T* left, int64_t rows, int64_t gates,
                          const std::vector<WeightGradient<T>>& weights, bool accumulate = false);

// The same of each group's rows: a group's gradients follow those of the group before, at `out` of every weight.
template <class T>
void grouped_weight_gradients(const Products<T>& products, const T* left, int64_t gates, const std::vector<WeightGradient<T>>& weights,
                              const Groups& groups);

// The sum of rows, `columns` numbers of each: some at a time, and their sums then among themselves, with the rounding of few additions.
template <class T>
void sum_rows(const std::vector<const T*>& rows, int64_t columns, T* to);

// To `to` (groups, columns): of each group's rows of `left` (rows, columns) the sum.
template <class T>
void grouped_row_sums(const T* left, int64_t columns, const Groups& groups, T* to);

// Some rows of `columns` numbers, one after the other.
template <class T>
struct RowsOf {
  const T* first;
  int64_t rows, columns;
};

// Gradients of weights whose products' gradients are `left`. With groups those of a group follow those of the group before, and none are
// added to what is there.
template <class T>
void weight_gradients(const Arguments<T>& a, const RowsOf<T>& left, const std::vector<WeightGradient<T>>& weights,
                      const std::optional<Groups>& groups, bool accumulate);

// to = or += the sums over the rows of `left`; with groups = the sums of each one's, one after the other.
template <class T>
void row_sums(const RowsOf<T>& left, const std::optional<Groups>& groups, bool accumulate, T* to);

}  // namespace sstkern
