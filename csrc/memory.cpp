#include "memory.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace sstkern {

namespace {

// Smaller tensors are left to at::empty: they fit what the C library keeps anyhow.
constexpr size_t kSmallest = size_t{1} << 15;
constexpr size_t kMost = size_t{1} << 26;  // bytes kept in all

struct Block {
  c10::DataPtr memory;
  size_t bytes;
};

// Sizes that differ little, as those of batches with other lengths, are the same: three bits of them count.
size_t rounded_up(size_t bytes) {
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

// Blocks that no tensor has, the latest last. A child process may be forked while a thread has the lock: nobody waits for it.
class Blocks {
 public:
  std::unique_ptr<Block> take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto same = [bytes](const std::unique_ptr<Block>& block) { return block->bytes == bytes; };
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), same);
    if (found == blocks_.rend()) return nullptr;
    std::unique_ptr<Block> block = std::move(*found);
    blocks_.erase(std::next(found).base());
    bytes_ -= bytes;
    return block;
  }

  void give(std::unique_ptr<Block> block) {
    std::vector<std::unique_ptr<Block>> dropped;  // outlives the lock
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block->bytes > kMost) return;
    bytes_ += block->bytes;
    blocks_.push_back(std::move(block));
    auto oldest = blocks_.begin();
    for (; bytes_ > kMost; ++oldest) {
      bytes_ -= (*oldest)->bytes;
      dropped.push_back(std::move(*oldest));
    }
    blocks_.erase(blocks_.begin(), oldest);
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> blocks_;
  size_t bytes_ = 0;
};

// Never destroyed: tensors may outlive this library's variables.
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

void give_back(void* block) { blocks().give(std::unique_ptr<Block>(static_cast<Block*>(block))); }

// A program that asks for memory with a known content, or a sanitizer, sees each tensor's own.
bool each_its_own() {
  return kGapBytes > 0 || (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory());
}

}  // namespace

at::Tensor empty_tensor(at::IntArrayRef shape, at::ScalarType type) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(shape)) * c10::elementSize(type);
  if (bytes < kSmallest || each_its_own()) return at::empty(shape, type);
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  const size_t size = rounded_up(bytes);
  std::unique_ptr<Block> block = blocks().take(size);
  if (!block) block.reset(new Block{allocator->allocate(size), size});
  void* const data = block->memory.get();
  c10::DataPtr memory(data, block.release(), &give_back, c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(memory), allocator, true);
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                               c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
  return tensor;
}

}  // namespace sstkern
