// Functions with plain arguments as operators: torch's own TORCH_BOX makes a shared_ptr for every tensor, and costs 2 to 3 microseconds
// more a call.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.h"

namespace sstkern {

// What an operator's argument of each type is read from. Each takes what the value owns.
template <class T>
struct Read {
  static T from(StableIValue value) { return torch::stable::detail::to<T>(value); }
};
template <>
struct Read<Tensor> {
  static Tensor from(StableIValue value) { return Tensor(torch::stable::detail::to<AtenTensorHandle>(value)); }
};
template <class T>
struct Read<std::optional<T>> {
  static std::optional<T> from(StableIValue value) {
    const auto held = torch::stable::detail::to<StableIValue*>(value);
    if (!held) return std::nullopt;
    std::optional<T> found(Read<T>::from(*held));
    delete held;  // as PyTorch's own conversion does for a target of 2.11
    return found;
  }
};
template <class T>
struct Read<std::vector<T>> {
  static std::vector<T> from(StableIValue value) {
    const auto list = torch::stable::detail::to<StableListHandle>(value);
    size_t size = 0;
    must(torch_list_size(list, &size));
    std::vector<T> found;
    found.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      must(torch_list_get_item(list, i, &item));
      found.push_back(Read<T>::from(item));
    }
    must(torch_delete_list(list));
    return found;
  }
};
template <>
struct Read<std::string> {
  static std::string from(StableIValue value) {  // PyTorch 2.13's own leaks the string
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    size_t size = 0;
    const char* data = nullptr;
    must(torch_string_length(handle, &size));
    must(torch_string_c_str(handle, &data));
    std::string found(data, size);
    must(torch_delete_string(handle));
    return found;
  }
};

inline StableIValue written(Tensor&& tensor) { return torch::stable::detail::from(tensor.release()); }
inline StableIValue written(int64_t number) { return torch::stable::detail::from(number); }
inline StableIValue written(double number) { return torch::stable::detail::from(number); }
inline StableIValue written(std::string&& text) { return torch::stable::detail::from(text); }
template <class T>
StableIValue written(std::vector<T>&& all) {
  StableListHandle list;
  must(torch_new_list_reserve_size(all.size(), &list));
  for (T& one : all) must(torch_list_push_back(list, written(std::move(one))));
  return torch::stable::detail::from(list);
}

template <class... Results, size_t... I>
void write_each(StableIValue* stack, std::tuple<Results...>&& results, std::index_sequence<I...>) {
  ((stack[I] = written(std::move(std::get<I>(results)))), ...);
}
template <class... Results>
void write(StableIValue* stack, std::tuple<Results...>&& results) {
  write_each(stack, std::move(results), std::index_sequence_for<Results...>());
}
template <class Result>
void write(StableIValue* stack, Result&& result) {
  stack[0] = written(std::move(result));
}

// What an argument is kept as while the function runs.
template <class T>
struct Kept {
  using type = std::remove_cv_t<std::remove_reference_t<T>>;
};
template <>
struct Kept<std::string_view> {
  using type = std::string;
};
template <>
struct Kept<Ints> {
  using type = std::vector<int64_t>;
};
template <class T>
using Owned = typename Kept<T>::type;

template <auto function, class Function = decltype(function)>
struct Boxed;
template <auto function, class Result, class... Parameters>
struct Boxed<function, Result (*)(Parameters...)> {
  static void call(StableIValue* stack, uint64_t, uint64_t) { call(stack, std::index_sequence_for<Parameters...>()); }

 private:
  template <size_t... I>
  static void call(StableIValue* stack, std::index_sequence<I...>) {
    // In braces: read from left to right.
    std::tuple<Owned<Parameters>...> arguments{Read<Owned<Parameters>>::from(stack[I])...};
    if constexpr (std::is_void_v<Result>)
      std::apply(function, arguments);
    else
      write(stack, Owned<Result>(std::apply(function, arguments)));
  }
};

}  // namespace sstkern
