// One stream of tokens as a worker's engine sees it: what is known, what is computed, and its
// blocks.
//
// `tokens` holds the prompt and everything generated so far; the cache holds the KV of the first
// `computed` of them. A prefill chunk and a decode step are the same act: run some of the tokens
// that are not computed yet, and when none is left, sample the next. Owned by an engine; engine
// thread only.
#ifndef BATON_COMMON_ENGINE_SEQUENCE_H_
#define BATON_COMMON_ENGINE_SEQUENCE_H_

#include <cstdint>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_cache/block_pool.h"
#include "common/model/model_config.h"
#include "common/sampling/sample_plan.h"
#include "common/sampling/sampling_params.h"

namespace baton {

struct Sequence {
  RequestKey key;
  std::vector<TokenId> tokens;
  uint32_t prompt_tokens = 0;     // Of the client's prompt; what follows in `tokens` was generated.
  uint32_t total_tokens_max = 0;  // `tokens` never grows beyond this.
  SamplingParams sampling;
  // Once it has planned, `tokens` only grows, and the prompt and both sets of parameters stay.
  SamplePlanner planner;
  StopParams stop;
  int32_t priority = 0;  // Higher goes first.
  uint64_t arrival = 0;  // Order of arrival at this worker.
  Instant arrived{};
  Instant started{};  // First chunk computed, or first decode step.
  Instant deadline = kNever;

  BlockTable blocks;              // Without those behind the window of every layer.
  uint32_t computed = 0;          // KV of tokens [0, computed) is in `blocks`.
  uint32_t cached_tokens = 0;     // Of these, found in the prefix cache at the start.
  uint32_t published_blocks = 0;  // Leading blocks that the prefix index was told of.
  PrefixHash published_hash;      // Of the last of them.

  uint32_t token_count() const { return static_cast<uint32_t>(tokens.size()); }
  uint32_t pending() const { return token_count() - computed; }
  uint32_t generated() const { return token_count() - prompt_tokens; }

  // Nothing is computed any more.
  void GiveUpBlocks();
};

// Takes whatever leading whole blocks of `tokens` the cache holds, at most all but the last token,
// so that something is left to compute. REQUIRES: sequence.blocks is empty.
void TakeCachedPrefix(BlockPool& pool, uint32_t block_tokens, Sequence& sequence);

// Extends sequence.blocks to cover `token_count` tokens. kResourceExhausted: nothing changed.
absl::Status ReserveBlocks(BlockPool& pool, uint32_t block_tokens, uint32_t token_count,
                           Sequence& sequence);

// Tells the prefix index of every block that has become full.
void PublishFullBlocks(BlockPool& pool, uint32_t block_tokens, Sequence& sequence);

// Gives back the blocks that no layer of the model shows to the next token to run, nor to any later
// one. Those that are published stay in the cache while there is room. REQUIRES: full blocks are
// published; who sends the sequence's KV holds references of its own; nobody receives it.
void ReleaseUnseenBlocks(const ModelConfig& model, uint32_t block_tokens, Sequence& sequence);

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_SEQUENCE_H_
