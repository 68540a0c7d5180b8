#include "common/kv_cache/block_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace baton {

BlockPool::BlockPool(uint32_t block_count) : blocks_(block_count) {
  BATON_CHECK(block_count > 0);
  BATON_CHECK(block_count <= kBlockCountMax);
  free_.reserve(block_count);
  for (uint32_t i = block_count; i > 0; --i) free_.push_back(BlockId{i - 1});
  counts_.total = block_count;
  counts_.free = block_count;
}

BlockPool::Block& BlockPool::At(BlockId block) {
  BATON_CHECK(Raw(block) < blocks_.size());
  return blocks_[Raw(block)];
}

absl::StatusOr<std::vector<BlockId>> BlockPool::Acquire(uint32_t count) {
  if (count > counts_.available()) {
    return absl::ResourceExhaustedError(absl::StrCat("needs ", count, " KV blocks, ",
                                                     counts_.available(), " of ", counts_.total,
                                                     " are available"));
  }
  while (counts_.free < count) Evict();
  std::vector<BlockId> taken(free_.end() - count, free_.end());
  free_.resize(free_.size() - count);
  for (BlockId id : taken) {
    Block& block = At(id);
    BATON_CHECK(block.state == State::kFree);
    block.state = State::kInUse;
    block.references = 1;
  }
  counts_.free -= count;
  counts_.in_use += count;
  return taken;
}

void BlockPool::Evict() {
  BATON_CHECK(!cached_.empty());
  const BlockId id = cached_.front();
  cached_.pop_front();
  index_.Erase(id);
  At(id).state = State::kFree;
  free_.push_back(id);
  --counts_.cached;
  ++counts_.free;
}

void BlockPool::Reference(BlockId id) {
  Block& block = At(id);
  if (block.state == State::kCached) {
    cached_.erase(block.lru);
    block.state = State::kInUse;
    --counts_.cached;
    ++counts_.in_use;
  }
  BATON_CHECK(block.state == State::kInUse);
  ++block.references;
}

void BlockPool::Release(BlockId id) {
  Block& block = At(id);
  BATON_CHECK(block.state == State::kInUse);
  BATON_CHECK(block.references > 0);
  if (--block.references > 0) return;
  --counts_.in_use;
  if (index_.Contains(id)) {
    block.state = State::kCached;
    block.lru = cached_.insert(cached_.end(), id);
    ++counts_.cached;
  } else {
    block.state = State::kFree;
    free_.push_back(id);
    ++counts_.free;
  }
}

void BlockPool::StartReceiving(BlockId id) {
  Block& block = At(id);
  BATON_CHECK(block.state == State::kInUse);
  BATON_CHECK(block.references == 1);
  BATON_CHECK(!index_.Contains(id));
  block.state = State::kReceiving;
  --counts_.in_use;
  ++counts_.receiving;
}

void BlockPool::FinishReceiving(BlockId id) {
  Block& block = At(id);
  BATON_CHECK(block.state == State::kReceiving);
  block.state = State::kInUse;
  --counts_.receiving;
  ++counts_.in_use;
}

void BlockPool::Quarantine(BlockId id) {
  Block& block = At(id);
  BATON_CHECK(block.state == State::kReceiving);
  block.state = State::kQuarantined;
  block.references = 0;
  --counts_.receiving;
  ++counts_.quarantined;
}

void BlockPool::ReleaseQuarantined(BlockId id) {
  Block& block = At(id);
  BATON_CHECK(block.state == State::kQuarantined);
  block.state = State::kFree;
  free_.push_back(id);
  --counts_.quarantined;
  ++counts_.free;
}

bool BlockPool::Publish(const PrefixHash& hash, BlockId id) {
  BATON_CHECK(At(id).state == State::kInUse);
  return index_.Insert(hash, id);
}

std::vector<BlockId> BlockPool::TakePrefix(std::span<const PrefixHash> hashes) {
  std::vector<BlockId> run;
  for (const PrefixHash& hash : hashes) {
    const std::optional<BlockId> block = index_.Find(hash);
    if (!block.has_value()) break;
    Reference(*block);
    run.push_back(*block);
  }
  return run;
}

uint32_t BlockPool::PeekPrefix(std::span<const PrefixHash> hashes) const {
  uint32_t count = 0;
  while (count < hashes.size() && index_.Find(hashes[count]).has_value()) ++count;
  return count;
}

bool BlockPool::TakesBytes(BlockId block) const {
  const State state = blocks_.at(Raw(block)).state;
  return state == State::kReceiving || state == State::kQuarantined;
}

void BlockPool::CheckInvariants() const {
  BlockCounts recount;
  recount.total = static_cast<uint32_t>(blocks_.size());
  for (uint32_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    const bool indexed = index_.Contains(BlockId{i});
    switch (block.state) {
      case State::kFree:
        BATON_CHECK(!indexed && block.references == 0);
        ++recount.free;
        break;
      case State::kReceiving:
        BATON_CHECK(!indexed && block.references == 1);
        ++recount.receiving;
        break;
      case State::kInUse:
        BATON_CHECK(block.references > 0);
        ++recount.in_use;
        break;
      case State::kCached:
        BATON_CHECK(indexed && block.references == 0);
        ++recount.cached;
        break;
      case State::kQuarantined:
        BATON_CHECK(!indexed && block.references == 0);
        ++recount.quarantined;
        break;
    }
  }
  BATON_CHECK(recount == counts_);
  BATON_CHECK(free_.size() == counts_.free);
  BATON_CHECK(cached_.size() == counts_.cached);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : pool_(other.pool_),
      blocks_(std::exchange(other.blocks_, {})),
      released_(std::exchange(other.released_, 0)) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    Clear();
    pool_ = other.pool_;
    blocks_ = std::exchange(other.blocks_, {});
    released_ = std::exchange(other.released_, 0);
  }
  return *this;
}

void BlockTable::Append(std::span<const BlockId> referenced) {
  blocks_.insert(blocks_.end(), referenced.begin(), referenced.end());
}

void BlockTable::AppendReleased(uint32_t count) {
  BATON_CHECK(blocks_.empty());
  blocks_.assign(count, kNoBlock);
  released_ = count;
}

void BlockTable::ReleaseBefore(uint32_t index) {
  BATON_CHECK(index <= blocks_.size());
  for (uint32_t i = index; i > released_; --i) {
    pool_->Release(std::exchange(blocks_[i - 1], kNoBlock));
  }
  released_ = std::max(released_, index);
}

std::vector<BlockId> BlockTable::Detach(uint32_t index) {
  BATON_CHECK(index <= blocks_.size());
  BATON_CHECK(index >= released_);
  std::vector<BlockId> tail(blocks_.begin() + index, blocks_.end());
  blocks_.resize(index);
  return tail;
}

void BlockTable::Clear() {
  ReleaseBefore(size());
  blocks_.clear();
  released_ = 0;
}

}  // namespace baton
