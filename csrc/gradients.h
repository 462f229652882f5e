// What comes after the backward's time loop: every gradient is one product, or one sum, over all valid rows.
#pragma once

#include <optional>
#include <vector>

#include "arguments.h"

namespace sstkern {

// The rows of each share of the batch that has weight gradients of its own.
using Groups = std::vector<std::vector<int64_t>>;

// The gradient of x: the gates' gradients of all directions times their input weights, zero in the padding.
template <class T>
at::Tensor input_gradient(const Arguments<T>& a, const std::vector<at::Tensor>& dgates);

// Gradients of weights whose products' gradients are `left`, `gates` numbers for each of `rows` rows.
template <class T>
void all_weight_gradients(const Products<T>& products, const T* left, int64_t rows, int64_t gates,
                          const std::vector<WeightGradient<T>>& weights);

// The same of each group's rows: a group's gradients follow those of the group before, at `out` of every weight.
template <class T>
void grouped_weight_gradients(const Products<T>& products, const T* left, int64_t gates, const std::vector<WeightGradient<T>>& weights,
                              const Groups& groups);

// Adds to `to` (groups, columns) each group's rows of `left` (rows, columns), in runs of 64 rows, and these then among themselves.
template <class T>
void grouped_row_sums(const T* left, int64_t columns, const Groups& groups, T* to);

// Gradients of weights whose products' gradients are `left` (rows, .). With groups those of a group follow those of the group before.
template <class T>
void weight_gradients(const Arguments<T>& a, const at::Tensor& left, const std::vector<WeightGradient<T>>& weights,
                      const std::optional<Groups>& groups);

// Sums over the rows of `left` (rows, .): (.), or (groups, .).
template <class T>
at::Tensor row_sums(const Arguments<T>& a, const at::Tensor& left, const std::optional<Groups>& groups);

}  // namespace sstkern
