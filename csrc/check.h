// Errors, as the exceptions that PyTorch's operators turn into Python's: std::runtime_error becomes RuntimeError, std::invalid_argument
// ValueError.
#pragma once

#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace sstkern {

using Ints = torch::headeronly::HeaderOnlyArrayRef<int64_t>;

template <class Part>
void put(std::ostream& text, const Part& part) {
  text << part;
}
// As PyTorch writes a shape: [2, 3].
inline void put(std::ostream& text, Ints numbers) {
  text << '[';
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "") << numbers[i];
  text << ']';
}

inline void put(std::ostream& text, const std::vector<int64_t>& numbers) { put(text, Ints(numbers)); }

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (put(text, parts), ...);
  return text.str();
}

}  // namespace sstkern

#define SSTKERN_CHECK(condition, ...)                          \
  do {                                                         \
    if (!(condition)) [[unlikely]]                             \
      throw std::runtime_error(sstkern::message(__VA_ARGS__)); \
  } while (0)
#define SSTKERN_CHECK_VALUE(condition, ...)                       \
  do {                                                            \
    if (!(condition)) [[unlikely]]                                \
      throw std::invalid_argument(sstkern::message(__VA_ARGS__)); \
  } while (0)
