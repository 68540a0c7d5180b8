#include "common/kv_cache/prefix_index.h"

#include <xxhash.h>

#include <cstddef>
#include <cstring>

namespace baton {

PrefixHash ChainHash(const PrefixHash& parent, std::span<const TokenId> tokens) {
  std::vector<std::byte> bytes(sizeof(parent) + tokens.size_bytes());
  std::memcpy(bytes.data(), &parent, sizeof(parent));
  std::memcpy(bytes.data() + sizeof(parent), tokens.data(), tokens.size_bytes());
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {.high = hash.high64, .low = hash.low64};
}

std::vector<PrefixHash> ChainHashes(std::span<const TokenId> tokens, uint32_t block_tokens) {
  std::vector<PrefixHash> hashes;
  PrefixHash parent;
  for (size_t start = 0; start + block_tokens <= tokens.size(); start += block_tokens) {
    parent = ChainHash(parent, tokens.subspan(start, block_tokens));
    hashes.push_back(parent);
  }
  return hashes;
}

bool PrefixIndex::Insert(const PrefixHash& hash, BlockId block) {
  if (hash_of_.contains(Raw(block)) || block_of_.contains(hash)) return false;
  block_of_[hash] = block;
  hash_of_[Raw(block)] = hash;
  return true;
}

void PrefixIndex::Erase(BlockId block) {
  const auto it = hash_of_.find(Raw(block));
  if (it == hash_of_.end()) return;
  block_of_.erase(it->second);
  hash_of_.erase(it);
}

std::optional<BlockId> PrefixIndex::Find(const PrefixHash& hash) const {
  const auto it = block_of_.find(hash);
  if (it == block_of_.end()) return std::nullopt;
  return it->second;
}

}  // namespace baton
