// Which full blocks hold which prefixes: a map from the hash of a block's tokens and of all tokens
// before it to the block.
//
// The hash is SHA-256 chained block by block, so that equal hashes mean equal prefixes, also where
// somebody would have it otherwise; no text is compared. See "Whose prefix it is" in
// DESIGN_NOTES.md. Thread-compatible; the block pool owns one.
#ifndef BATON_COMMON_KV_CACHE_PREFIX_INDEX_H_
#define BATON_COMMON_KV_CACHE_PREFIX_INDEX_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/base/ids.h"

namespace baton {

// Identifies the tokens of a block together with everything before it.
struct PrefixHash {
  std::array<uint64_t, 4> words{};

  friend bool operator==(const PrefixHash&, const PrefixHash&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const PrefixHash& hash) {
    return H::combine(std::move(h), hash.words);
  }
};

// The hash of a block with `tokens` whose predecessor has hash `parent` ({} for the first block).
PrefixHash ChainHash(const PrefixHash& parent, std::span<const TokenId> tokens);

// Hashes of all full blocks of `tokens`, in order.
std::vector<PrefixHash> ChainHashes(std::span<const TokenId> tokens, uint32_t block_tokens);

class PrefixIndex {
 public:
  // Returns false, and changes nothing, if the prefix or the block is already indexed.
  bool Insert(const PrefixHash& hash, BlockId block);
  // Removes a block; nothing happens if it is not indexed.
  void Erase(BlockId block);
  std::optional<BlockId> Find(const PrefixHash& hash) const;
  bool Contains(BlockId block) const { return hash_of_.contains(Raw(block)); }
  size_t size() const { return block_of_.size(); }

 private:
  absl::flat_hash_map<PrefixHash, BlockId> block_of_;
  absl::flat_hash_map<uint32_t, PrefixHash> hash_of_;  // By Raw(BlockId).
};

}  // namespace baton

#endif  // BATON_COMMON_KV_CACHE_PREFIX_INDEX_H_
