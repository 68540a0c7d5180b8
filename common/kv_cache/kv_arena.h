// The memory behind a worker's KV blocks: one allocation, indexed by BlockId.
//
// Who may read or write a block is the block pool's business; the arena only knows addresses.
// Immutable after construction, so any thread may ask it.
#ifndef BATON_COMMON_KV_CACHE_KV_ARENA_H_
#define BATON_COMMON_KV_CACHE_KV_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/device/device.h"
#include "common/kv_cache/kv_layout.h"

namespace baton {

class KvArena {
 public:
  // kResourceExhausted when the device has not the memory.
  // The device outlives the arena.
  static absl::StatusOr<std::unique_ptr<KvArena>> Create(Device& device, const KvLayout& layout,
                                                         uint32_t block_count);

  // Where the blocks lie; if it is not the CPU, the host must not touch them.
  Device& device() const { return device_; }
  const KvLayout& layout() const { return layout_; }
  uint32_t block_count() const { return block_count_; }

  // First byte of a block: `layout().block_bytes()` bytes. REQUIRES: block < block_count().
  std::byte* BlockData(BlockId block) const {
    return memory_.data() + Raw(block) * layout_.block_bytes();
  }
  // First byte of the K or V row of one token.
  std::byte* RowData(BlockId block, uint32_t layer, bool value, uint32_t kv_head,
                     uint32_t token_in_block) const {
    return BlockData(block) + layout_.OffsetOf(layer, value, kv_head, token_in_block);
  }

 private:
  KvArena(Device& device, const KvLayout& layout, uint32_t block_count, DeviceMemory memory)
      : device_(device), layout_(layout), block_count_(block_count), memory_(std::move(memory)) {}

  Device& device_;
  const KvLayout layout_;
  const uint32_t block_count_;
  const DeviceMemory memory_;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_KV_ARENA_H_
