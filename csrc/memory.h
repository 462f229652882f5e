// Memory for a call's tensors that a call before has left.
#pragma once

#include <memory>

#include "tensor.h"

namespace sstkern {

// What the system gives is cleared page by page at the first touch, and what is freed it takes back or not, which rests on what the process
// has freed before: a training step of an LSTM (64, 20, 40), say, takes twice as long where it does. So memory of 32 kB to 16 MB is left
// for the next that is wanted, up to 48 MB in all. Any thread may call these functions, and a forked child.

void* take_memory(size_t bytes);
void give_memory(void* memory);

// Numbers that only a call itself sees, with nothing in them yet.
template <class T>
class Numbers {
 public:
  Numbers() = default;
  explicit Numbers(int64_t size) : numbers_(static_cast<T*>(take_memory(size * sizeof(T)))) {}
  T* data() const { return numbers_.get(); }

 private:
  struct Give {
    void operator()(T* numbers) const { give_memory(numbers); }
  };
  std::unique_ptr<T[], Give> numbers_;
};

// As plain_tensor, for what a call has to itself or saves for its backward: PyTorch cannot resize such a tensor to more than it has, so
// what a caller gets is plain.
Tensor empty_tensor(Ints shape, ScalarType type);

}  // namespace sstkern
