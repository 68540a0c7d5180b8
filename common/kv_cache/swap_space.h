// Memory of the host for the KV of sequences that had to give up their blocks: they get it back
// block by block, instead of computing it again.
//
// Bounded: allocated once, never grows. Engine thread only; copies are over when SwapOut and SwapIn
// return, so blocks are touched only inside them. The source of the idea is vLLM's swapping of
// preempted sequences (Kwon et al., "Efficient Memory Management for Large Language Model Serving
// with PagedAttention", 2023, section 4.5).
#ifndef BATON_COMMON_KV_CACHE_SWAP_SPACE_H_
#define BATON_COMMON_KV_CACHE_SWAP_SPACE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/device/device.h"
#include "common/kv_cache/kv_arena.h"

namespace baton {

class SwapSpace;

// Blocks that lie in a swap space. Move-only; their places are free when it goes.
class SwappedBlocks {
 public:
  SwappedBlocks(SwappedBlocks&& other) noexcept
      : space_(other.space_), slots_(std::exchange(other.slots_, {})) {}
  SwappedBlocks& operator=(SwappedBlocks&& other) noexcept {
    std::swap(space_, other.space_);
    std::swap(slots_, other.slots_);
    return *this;
  }
  ~SwappedBlocks();

  uint32_t size() const { return static_cast<uint32_t>(slots_.size()); }

 private:
  friend class SwapSpace;
  SwappedBlocks(SwapSpace* space, std::vector<uint32_t> slots)
      : space_(space), slots_(std::move(slots)) {}

  SwapSpace* space_;
  std::vector<uint32_t> slots_;
};

class SwapSpace {
 public:
  // As many blocks of the arena's layout as fit into `bytes`. kInvalidArgument: not even one.
  // kResourceExhausted: the host has not so much memory. The arena outlives it.
  static absl::StatusOr<std::unique_ptr<SwapSpace>> Create(const KvArena& arena, uint64_t bytes);

  // Copies blocks of the arena to the host. kResourceExhausted: there is no room for all of them.
  // Otherwise the device's errors.
  absl::StatusOr<SwappedBlocks> SwapOut(std::span<const BlockId> blocks);
  // Copies those from `first` on back, into as many blocks as there are left. They stay here, too.
  // REQUIRES: first + blocks.size() == swapped.size().
  absl::Status SwapIn(const SwappedBlocks& swapped, uint32_t first,
                      std::span<const BlockId> blocks);

  uint32_t blocks_total() const { return blocks_total_; }
  uint32_t blocks_used() const { return blocks_total_ - static_cast<uint32_t>(free_.size()); }

 private:
  friend class SwappedBlocks;
  SwapSpace(const KvArena& arena, uint32_t blocks, std::vector<DeviceMemory> shards);

  // Calls `copy` for each run of neighbouring slots of each shard.
  using CopyRun = absl::FunctionRef<absl::Status(
      Device& device, std::span<const std::span<std::byte>> blocks, std::byte* host)>;
  absl::Status CopyRuns(std::span<const uint32_t> slots, std::span<const BlockId> blocks,
                        CopyRun copy) const;

  const KvArena& arena_;
  const uint32_t blocks_total_;
  const std::vector<DeviceMemory> shards_;  // Slot by slot, each what a shard has of a block.
  std::set<uint32_t> free_;                 // In order, so that neighbours are taken together.
};

}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_SWAP_SPACE_H_
