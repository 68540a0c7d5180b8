// One forward pass: rows of tokens of several sequences, ragged, each over its own paged KV cache;
// and what is to be chosen from its logits.
//
// A row is a prefill chunk (many tokens) or a decode step (one token); the model does not tell them
// apart. Plain data; everything is borrowed for the duration of the call.
#ifndef BATON_COMMON_MODEL_BATCH_H_
#define BATON_COMMON_MODEL_BATCH_H_

#include <cstdint>
#include <optional>
#include <span>

#include "common/base/ids.h"
#include "common/kernels/sample_row.h"

namespace baton {

struct BatchRow {
  std::span<const TokenId> tokens;  // [count] to run; each in [0, vocab_size).
  uint32_t start = 0;  // Absolute position of tokens[0]; the KV of [0, start) is in the cache.
  // Cover positions [0, start + count), in order. Those wholly before the first position that
  // `start` sees in any layer are not looked at.
  std::span<const BlockId> blocks;
  uint32_t logit_count = 0;  // The last so many tokens want logits; 0 inside a prompt.
};

// A row of a decode step that is started while the step before it may still run: one token, whose
// successor is wanted.
struct DecodeRow {
  TokenId token = 0;  // In [0, vocab_size). Means nothing with `chosen_by`.
  // The token is the one that this row of the step before chooses.
  std::optional<uint32_t> chosen_by = {};
  uint32_t start = 0;  // As in BatchRow, with what the step before writes.
  std::span<const BlockId> blocks;
};

// For a model that samples tokens itself. Host memory. n: the sum of the rows' logit_count.
struct TokenChoice {
  std::span<const SampleRow> samples;  // [n]: how.
  std::span<const LogitEdit> edits;    // As samples say.
  std::span<TokenId> tokens;           // [n]: the result.
  // Which of the n logits are wanted as they are before any edit, ascending, and where they go:
  // [raw_rows.size(), vocab_size].
  std::span<const uint32_t> raw_rows = {};
  std::span<float> raw_logits = {};
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_BATCH_H_
