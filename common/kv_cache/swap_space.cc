#include "common/kv_cache/swap_space.h"

#include <algorithm>
#include <iterator>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kv_cache/block_pool.h"

namespace baton {

SwappedBlocks::~SwappedBlocks() {
  if (space_ != nullptr) space_->free_.insert(slots_.begin(), slots_.end());
}

absl::StatusOr<std::unique_ptr<SwapSpace>> SwapSpace::Create(const KvArena& arena, uint64_t bytes) {
  const uint64_t blocks =
      std::min<uint64_t>(bytes / arena.layout().block_bytes(), BlockPool::kBlockCountMax);
  if (blocks == 0) {
    return absl::InvalidArgumentError(absl::StrCat("a swap space of ", bytes,
                                                   " bytes is less than one KV block of ",
                                                   arena.layout().block_bytes(), " bytes"));
  }
  std::vector<DeviceMemory> shards;
  for (uint32_t shard = 0; shard < arena.shard_count(); ++shard) {
    BATON_ASSIGN_OR_RETURN(shards.emplace_back(), arena.device(shard).AllocatePinned(
                                                      blocks * arena.shard_layout().block_bytes()));
  }
  return absl::WrapUnique(new SwapSpace(arena, static_cast<uint32_t>(blocks), std::move(shards)));
}

SwapSpace::SwapSpace(const KvArena& arena, uint32_t blocks, std::vector<DeviceMemory> shards)
    : arena_(arena), blocks_total_(blocks), shards_(std::move(shards)) {
  for (uint32_t slot = 0; slot < blocks; ++slot) free_.insert(free_.end(), slot);
}

absl::StatusOr<SwappedBlocks> SwapSpace::SwapOut(std::span<const BlockId> blocks) {
  if (blocks.size() > free_.size()) {
    return absl::ResourceExhaustedError(absl::StrCat("the swap space has ", free_.size(),
                                                     " free places, needed are ", blocks.size()));
  }
  const auto end = std::next(free_.begin(), static_cast<std::ptrdiff_t>(blocks.size()));
  SwappedBlocks swapped(this, {free_.begin(), end});
  free_.erase(free_.begin(), end);
  BATON_RETURN_IF_ERROR(
      CopyRuns(swapped.slots_, blocks,
               [](Device& device, std::span<const std::span<std::byte>> from, std::byte* host) {
                 const std::vector<std::span<const std::byte>> constant(from.begin(), from.end());
                 return device.Gather(host, constant);
               }));
  return swapped;
}

absl::Status SwapSpace::SwapIn(const SwappedBlocks& swapped, uint32_t first,
                               std::span<const BlockId> blocks) {
  BATON_CHECK(swapped.space_ == this && first + blocks.size() == swapped.size());
  return CopyRuns(std::span<const uint32_t>(swapped.slots_).subspan(first), blocks,
                  [](Device& device, std::span<const std::span<std::byte>> to, std::byte* host) {
                    return device.Scatter(to, host);
                  });
}

absl::Status SwapSpace::CopyRuns(std::span<const uint32_t> slots, std::span<const BlockId> blocks,
                                 CopyRun copy) const {
  const size_t bytes = arena_.shard_layout().block_bytes();
  for (uint32_t shard = 0; shard < arena_.shard_count(); ++shard) {
    for (size_t begin = 0; begin < slots.size();) {
      std::vector<std::span<std::byte>> run;
      do {
        run.push_back({arena_.BlockData(blocks[begin + run.size()], shard), bytes});
      } while (begin + run.size() < slots.size() &&
               slots[begin + run.size()] == slots[begin] + run.size());
      BATON_RETURN_IF_ERROR(
          copy(arena_.device(shard), run, shards_[shard].data() + slots[begin] * bytes));
      begin += run.size();
    }
  }
  return absl::OkStatus();
}

}  // namespace baton
