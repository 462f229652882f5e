#include "memory.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.h"

namespace sstkern {

namespace {

// Less than the first fits what the C library keeps anyhow. So is it with more than the second: of a layer with so much to do few
// are worth the memory that others could not have.
constexpr size_t kSmallest = size_t{1} << 15, kLargest = size_t{1} << 24;
constexpr size_t kMost = size_t{48} << 20;  // bytes kept in all

// Before a block's numbers, which begin after it.
struct alignas(64) Header {
  size_t bytes;  // of the block, or 0 where it is not kept
};

struct Block {
  Header* header;
  size_t bytes;
};

void free_block(Header* header) { ::operator delete(header, std::align_val_t(alignof(Header))); }

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
    if (!lock) return free_block(header);
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
      free_block(end->header);
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

// A sanitizer sees each one's own.
constexpr bool each_its_own() {
#ifdef __SANITIZE_THREAD__
  return true;
#else
  return kGapBytes > 0;
#endif
}

bool is_kept(size_t bytes) { return bytes >= kSmallest && bytes <= kLargest && !each_its_own(); }

Header* new_block(size_t bytes, size_t noted) { return new (::operator new(bytes, std::align_val_t(alignof(Header)))) Header{noted}; }

size_t bytes_of(Ints shape, ScalarType type) {
  size_t bytes = size_of(type);
  for (const int64_t size : shape) bytes *= size;
  return bytes;
}

}  // namespace

void* take_memory(size_t bytes) {
  if (!is_kept(bytes)) return new_block(bytes + sizeof(Header), 0) + 1;
  const size_t size = rounded_up(bytes + sizeof(Header));
  Header* const left = blocks().take(size);
  return (left ? left : new_block(size, size)) + 1;
}

void give_memory(void* memory) {
  Header* const header = static_cast<Header*>(memory) - 1;
  header->bytes ? blocks().give(header) : free_block(header);
}

Tensor empty_tensor(Ints shape, ScalarType type) {
  const size_t bytes = bytes_of(shape, type);
  if (!is_kept(bytes)) return plain_tensor(shape, type);
  void* const memory = take_memory(bytes);
  const std::vector<int64_t> strides = contiguous_strides(shape);
  AtenTensorHandle made;
  must(torch_from_blob(
      memory, static_cast<int64_t>(shape.size()), shape.data(), strides.data(), 0, number_of(type), aoti_torch_device_type_cpu(), -1, &made,
      aoti_torch_layout_strided(), nullptr, 0, [](void* numbers, void*) { give_memory(numbers); }, nullptr));
  return Tensor(made);
}

}  // namespace sstkern
