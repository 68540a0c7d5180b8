#include "common/kv_cache/prefix_index.h"

#include <openssl/evp.h>

#include <cstddef>
#include <memory>

#include "common/base/check.h"

namespace baton {
namespace {

// SHA-256 of one block after another.
class BlockHasher {
 public:
  BlockHasher() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    BATON_CHECK(context_ != nullptr);
    BATON_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  PrefixHash Hash(const PrefixHash& parent, std::span<const TokenId> tokens) {
    PrefixHash hash;
    // Without a type the context keeps its own and begins anew, which is much the quicker way.
    BATON_CHECK(EVP_DigestInit_ex(context_.get(), nullptr, nullptr) == 1);
    BATON_CHECK(EVP_DigestUpdate(context_.get(), parent.words.data(), sizeof(parent.words)) == 1);
    BATON_CHECK(EVP_DigestUpdate(context_.get(), tokens.data(), tokens.size_bytes()) == 1);
    BATON_CHECK(EVP_DigestFinal_ex(context_.get(),
                                   reinterpret_cast<unsigned char*>(hash.words.data()),
                                   nullptr) == 1);
    return hash;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

PrefixHash ChainHash(const PrefixHash& parent, std::span<const TokenId> tokens) {
  return BlockHasher().Hash(parent, tokens);
}

std::vector<PrefixHash> ChainHashes(std::span<const TokenId> tokens, uint32_t block_tokens) {
  std::vector<PrefixHash> hashes;
  hashes.reserve(tokens.size() / block_tokens);
  BlockHasher hasher;
  PrefixHash parent;
  for (size_t start = 0; start + block_tokens <= tokens.size(); start += block_tokens) {
    parent = hasher.Hash(parent, tokens.subspan(start, block_tokens));
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
