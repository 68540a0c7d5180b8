// The memory behind a worker's KV blocks, indexed by BlockId: one allocation, or one per device.
//
// With several devices, each has a shard: some KV heads of every block. A block keeps its layout
// for whoever asks for rows; only the runs of heads that lie behind each other are shorter. Who may
// read or write a block is the block pool's business; the arena only knows addresses. Immutable
// after construction, so any thread may ask it.
#ifndef BATON_COMMON_KV_CACHE_KV_ARENA_H_
#define BATON_COMMON_KV_CACHE_KV_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/device/device.h"
#include "common/kv_cache/kv_layout.h"

namespace baton {

class KvArena {
 public:
  // kResourceExhausted when the device has not the memory. Devices outlive the arena.
  static absl::StatusOr<std::unique_ptr<KvArena>> Create(Device& device, const KvLayout& layout,
                                                         uint32_t block_count);
  // A shard on each device, of equal numbers of heads, the first ones on the first.
  // kInvalidArgument: the heads cannot be divided so.
  static absl::StatusOr<std::unique_ptr<KvArena>> Create(std::span<Device* const> devices,
                                                         const KvLayout& layout,
                                                         uint32_t block_count);

  // Where a shard lies; if it is not the CPU, the host must not touch it. All are of one kind.
  Device& device(uint32_t shard = 0) const { return *devices_[shard]; }
  const KvLayout& layout() const { return layout_; }
  uint32_t block_count() const { return block_count_; }

  uint32_t shard_count() const { return static_cast<uint32_t>(shards_.size()); }
  // Of what each shard has of a block: `layout()` with its share of the heads.
  const KvLayout& shard_layout() const { return shard_layout_; }

  // Which shard has a KV head. REQUIRES: it is one of the layout's.
  uint32_t ShardOfHead(uint32_t kv_head) const { return kv_head / shard_layout_.kv_heads; }
  // Which shard a row lies in. REQUIRES: it is one of the arena's.
  uint32_t ShardOf(const std::byte* data) const;

  // First byte of a shard of a block: `shard_layout().block_bytes()` bytes, behind which lie those
  // of the next block. REQUIRES: block < block_count(), shard < shard_count().
  std::byte* BlockData(BlockId block, uint32_t shard = 0) const {
    return shards_[shard].data() + Raw(block) * shard_layout_.block_bytes();
  }
  // First byte of the K or V row of one token. Rows of two shards never touch.
  std::byte* RowData(BlockId block, uint32_t layer, bool value, uint32_t kv_head,
                     uint32_t token_in_block) const {
    const uint32_t heads = shard_layout_.kv_heads;
    return BlockData(block, ShardOfHead(kv_head)) +
           shard_layout_.OffsetOf(layer, value, kv_head % heads, token_in_block);
  }

 private:
  KvArena(std::span<Device* const> devices, const KvLayout& layout, const KvLayout& shard_layout,
          uint32_t block_count, std::vector<DeviceMemory> shards);

  const std::vector<Device*> devices_;  // By shard.
  const KvLayout layout_;
  const KvLayout shard_layout_;
  const uint32_t block_count_;
  const std::vector<DeviceMemory> shards_;  // In the order of their heads.
};

}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_KV_ARENA_H_
