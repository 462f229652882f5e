#include "memory.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace sstkern {

namespace {

// Smaller tensors are left to at::empty: they fit what the C library keeps anyhow. So are larger ones: of a layer with so much to do few
// are worth the memory that others could not have.
constexpr size_t kSmallest = size_t{1} << 15, kLargest = size_t{1} << 24;
constexpr size_t kMost = size_t{48} << 20;  // bytes kept in all

// Before a block's numbers, which begin after it; torch's copies on write ask that the deleter is given the numbers' own address.
struct alignas(64) Header {
  size_t bytes;  // of the block
};

struct Block {
  Header* header;
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
  Blocks() { blocks_.reserve(kMost / kSmallest + 1); }  // a deleter may not run out of memory

  // Null where none has this size. Then at least as many bytes of others are freed, for what the caller allocates.
  Header* take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), [bytes](const Block& block) { return block.bytes == bytes; });
    if (found == blocks_.rend()) {
      drop(bytes_ - std::min(bytes, bytes_));
      return nullptr;
    }
    Header* const header = found->header;
    blocks_.erase(std::next(found).base());
    bytes_ -= bytes;
    return header;
  }

  void give(Header* header) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return c10::free_cpu(header);
    bytes_ += header->bytes;
    blocks_.push_back({header, header->bytes});
    drop(kMost);
  }

 private:
  // Frees the oldest until no more than so many bytes are left.
  void drop(size_t most) {
    auto end = blocks_.begin();
    for (; bytes_ > most; ++end) {
      bytes_ -= end->bytes;
      c10::free_cpu(end->header);
    }
    blocks_.erase(blocks_.begin(), end);
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
};

// Never destroyed: tensors may outlive this library's variables.
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

void give_back(void* numbers) {
  c10::profiledCPUMemoryReporter().Delete(numbers);
  blocks().give(static_cast<Header*>(numbers) - 1);
}

// A program that asks for memory with a known content, or a sanitizer, sees each tensor's own.
bool each_its_own() {
#ifdef __SANITIZE_THREAD__
  return true;
#else
  return kGapBytes > 0 || (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory());
#endif
}

}  // namespace

at::Tensor empty_tensor(at::IntArrayRef shape, at::ScalarType type) {
  const size_t bytes = at::detail::computeStorageNbytesContiguous(shape, c10::elementSize(type));
  if (bytes < kSmallest || bytes > kLargest || each_its_own()) return at::empty(shape, type);
  const size_t size = rounded_up(bytes + sizeof(Header));
  Header* header = blocks().take(size);
  if (!header) header = new (c10::alloc_cpu(size)) Header{size};
  void* const numbers = header + 1;
  c10::profiledCPUMemoryReporter().New(numbers, bytes);
  c10::DataPtr memory(numbers, numbers, &give_back, c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(memory), c10::GetCPUAllocator(), true);
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                               c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
  return tensor;
}

}  // namespace sstkern
