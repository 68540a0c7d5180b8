#include "common/engine/sequence.h"

#include <span>

#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace baton {

void TakeCachedPrefix(BlockPool& pool, uint32_t block_tokens, Sequence& sequence) {
  BATON_CHECK(sequence.blocks.size() == 0);
  const std::span<const TokenId> tokens(sequence.tokens);
  const std::vector<PrefixHash> hashes = ChainHashes(tokens.first(tokens.size() - 1), block_tokens);
  const std::vector<BlockId> run = pool.TakePrefix(hashes);
  sequence.blocks = BlockTable(&pool);
  sequence.blocks.Append(run);
  sequence.published_blocks = static_cast<uint32_t>(run.size());
  if (!run.empty()) sequence.published_hash = hashes[run.size() - 1];
  sequence.cached_tokens = sequence.published_blocks * block_tokens;
  sequence.computed = sequence.cached_tokens;
}

void Sequence::GiveUpBlocks() {
  blocks.Clear();
  computed = 0;
  published_blocks = 0;
  published_hash = {};
}

absl::Status ReserveBlocks(BlockPool& pool, uint32_t block_tokens, uint32_t token_count,
                           Sequence& sequence) {
  const uint32_t needed = (token_count + block_tokens - 1) / block_tokens;
  if (needed <= sequence.blocks.size()) return absl::OkStatus();
  BATON_ASSIGN_OR_RETURN(const std::vector<BlockId> blocks,
                         pool.Acquire(needed - sequence.blocks.size()));
  if (sequence.blocks.size() == 0) sequence.blocks = BlockTable(&pool);
  sequence.blocks.Append(blocks);
  return absl::OkStatus();
}

void PublishFullBlocks(BlockPool& pool, uint32_t block_tokens, Sequence& sequence) {
  const std::span<const TokenId> tokens(sequence.tokens);
  while ((sequence.published_blocks + 1) * block_tokens <= sequence.computed) {
    const uint32_t index = sequence.published_blocks;
    sequence.published_hash =
        ChainHash(sequence.published_hash, tokens.subspan(index * block_tokens, block_tokens));
    pool.Publish(sequence.published_hash, sequence.blocks.blocks()[index]);
    ++sequence.published_blocks;
  }
}

void ReleaseUnseenBlocks(const ModelConfig& model, uint32_t block_tokens, Sequence& sequence) {
  const uint32_t unseen = model.FirstVisible(sequence.computed) / block_tokens;
  BATON_CHECK(unseen <= sequence.published_blocks);
  sequence.blocks.ReleaseBefore(unseen);
}

}  // namespace baton
