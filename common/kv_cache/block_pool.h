// The ledger of a worker's KV blocks: who holds each, and what it may be used for.
//
// A block is in exactly one state:
//   free          nobody knows it;
//   receiving     one lease's epoch may have receives posted into it;
//   in use        referenced by `references >= 1` holders, perhaps also indexed;
//   cached        indexed, no references: evicted, oldest use first, when free blocks run out;
//   quarantined   its lease gave up, but a receive may still be posted: untouchable until UCX says
//   so.
// The sum over the states is constant. A wrong transition is a programmer error and aborts.
//
// Thread-compatible: the engine thread owns the pool and every reference.
// See "Who owns a KV block" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_KV_CACHE_BLOCK_POOL_H_
#define BATON_COMMON_KV_CACHE_BLOCK_POOL_H_

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/kv_cache/prefix_index.h"

namespace baton {

struct BlockCounts {
  uint32_t total = 0;
  uint32_t free = 0;
  uint32_t receiving = 0;
  uint32_t in_use = 0;
  uint32_t cached = 0;
  uint32_t quarantined = 0;

  // What an Acquire could take now.
  uint32_t available() const { return free + cached; }
  friend bool operator==(const BlockCounts&, const BlockCounts&) = default;
};

class BlockPool {
 public:
  static constexpr uint32_t kBlockCountMax = 1u << 24;

  // REQUIRES: 0 < block_count <= kBlockCountMax.
  explicit BlockPool(uint32_t block_count);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Takes `count` blocks, each in use with one reference, or none: on kResourceExhausted nothing
  // changed. Evicts cached blocks when the free ones do not suffice.
  absl::StatusOr<std::vector<BlockId>> Acquire(uint32_t count);

  // One more, or one fewer, holder of a block. The last one leaves it cached if it is indexed, else
  // free.
  void Reference(BlockId block);
  void Release(BlockId block);

  // in use (one reference, not indexed) → receiving.
  void StartReceiving(BlockId block);
  // receiving → in use: every byte has landed.
  void FinishReceiving(BlockId block);
  // receiving → quarantined; its reference ends here.
  void Quarantine(BlockId block);
  // quarantined → free.
  void ReleaseQuarantined(BlockId block);

  // Indexes a block in use that holds a full prefix. False, and nothing changes, if that prefix is
  // known.
  bool Publish(const PrefixHash& hash, BlockId block);
  // The longest indexed run of `hashes`, from the first, each block referenced once for the caller.
  std::vector<BlockId> TakePrefix(std::span<const PrefixHash> hashes);
  // How long that run would be. Takes nothing.
  uint32_t PeekPrefix(std::span<const PrefixHash> hashes) const;

  const BlockCounts& counts() const { return counts_; }
  // receiving or quarantined: a posted receive may land in it. For tests and simulation.
  bool TakesBytes(BlockId block) const;

  // Recounts everything from the blocks themselves; aborts on any difference. For tests and
  // simulation.
  void CheckInvariants() const;

 private:
  enum class State : uint8_t { kFree, kReceiving, kInUse, kCached, kQuarantined };
  struct Block {
    State state = State::kFree;
    uint32_t references = 0;
    std::list<BlockId>::iterator lru;  // Valid while cached.
  };

  Block& At(BlockId block);
  void Evict();

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;  // LIFO: the warmest block goes out first.
  std::list<BlockId> cached_;  // Oldest use first.
  PrefixIndex index_;
  BlockCounts counts_;
};

// References to the blocks of one sequence, in order of position: kNoBlock where one was given back
// early. Move-only; gives them back when it goes.
class BlockTable {
 public:
  BlockTable() = default;
  explicit BlockTable(BlockPool* pool) : pool_(pool) {}
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;
  ~BlockTable() { Clear(); }

  std::span<const BlockId> blocks() const { return blocks_; }
  uint32_t size() const { return static_cast<uint32_t>(blocks_.size()); }

  // Adopts references that the caller holds.
  void Append(std::span<const BlockId> referenced);
  // So many places without a block. REQUIRES: the table is empty.
  void AppendReleased(uint32_t count);
  // Releases the blocks before `index` that are still there, last block first. Their places stay.
  // REQUIRES: index <= size().
  void ReleaseBefore(uint32_t index);
  // Gives up the references from `index` on without releasing them: the caller now holds them.
  // REQUIRES: none of them was released before.
  std::vector<BlockId> Detach(uint32_t index);
  // Releases all, last block first, so that eviction takes the tail of a prefix before its head.
  void Clear();

 private:
  BlockPool* pool_ = nullptr;
  std::vector<BlockId> blocks_;
  uint32_t released_ = 0;  // The first so many are kNoBlock.
};

}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_BLOCK_POOL_H_
