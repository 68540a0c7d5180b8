#include "common/kv_cache/kv_arena.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Create(Device& device, const KvLayout& layout,
                                                         uint32_t block_count) {
  Device* const devices[] = {&device};
  return Create(devices, layout, block_count);
}

absl::StatusOr<std::unique_ptr<KvArena>> KvArena::Create(std::span<Device* const> devices,
                                                         const KvLayout& layout,
                                                         uint32_t block_count) {
  const auto count = static_cast<uint32_t>(devices.size());
  if (count == 0 || layout.kv_heads % count != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(layout.kv_heads, " KV heads cannot be divided among ", count, " devices"));
  }
  KvLayout shard_layout = layout;
  shard_layout.kv_heads /= count;
  // Behind each shard some bytes stay free, so that it does not touch another one's memory: what
  // lies behind each other may be copied in one go.
  const size_t gap = count == 1 ? 0 : Device::kAlignment;
  std::vector<DeviceMemory> shards;
  for (Device* device : devices) {
    BATON_ASSIGN_OR_RETURN(shards.emplace_back(),
                           device->Allocate(shard_layout.block_bytes() * block_count + gap));
  }
  return absl::WrapUnique(
      new KvArena(devices, layout, shard_layout, block_count, std::move(shards)));
}

KvArena::KvArena(std::span<Device* const> devices, const KvLayout& layout,
                 const KvLayout& shard_layout, uint32_t block_count,
                 std::vector<DeviceMemory> shards)
    : devices_(devices.begin(), devices.end()),
      layout_(layout),
      shard_layout_(shard_layout),
      block_count_(block_count),
      shards_(std::move(shards)) {}

uint32_t KvArena::ShardOf(const std::byte* data) const {
  const auto holds = [data](const DeviceMemory& shard) {
    return data >= shard.data() && data < shard.data() + shard.bytes();
  };
  const auto found = std::find_if(shards_.begin(), shards_.end(), holds);
  BATON_CHECK(found != shards_.end());
  return static_cast<uint32_t>(found - shards_.begin());
}

}  // namespace baton
