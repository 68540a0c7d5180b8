#include "common/kernels/cuda/step_memory.h"

#include <algorithm>
#include <bit>

namespace baton::cuda {
namespace {

// Tokens and edits of logits: the executor uploads 6 MiB of edits at most.
constexpr size_t kOtherInputBytes = size_t{16} << 20;

// A step is filled up with fewer rows.
constexpr uint32_t kPaddedRows = 32;

size_t BlocksOf(const StepBounds& bounds) {
  return (bounds.sequence_tokens + bounds.pages.block_tokens - 1) / bounds.pages.block_tokens;
}

}  // namespace

size_t SampledTokensBytes(uint32_t rows) { return (rows * sizeof(int32_t) + 255) / 256 * 256; }

size_t InputBytesFor(const StepBounds& bounds) {
  // A step with chunks has a second table, of those rows that want logits.
  return kOtherInputBytes +
         2 * bounds.sequences * (BlocksOf(bounds) * sizeof(uint32_t) + sizeof(DeviceSequence)) +
         2 * bounds.tokens * sizeof(uint32_t);
}

size_t ScratchBytesFor(const Launch& launch, DType activations, const StepBounds& bounds) {
  size_t most = 0;
  if (bounds.vocab_size <= kSampleVocabMax) {
    most = SampledTokensBytes(bounds.logit_rows) +
           SampleScratchBytes(bounds.logit_rows, bounds.vocab_size);
  }
  AttentionArgs args = {.type = activations,
                        .heads = bounds.heads,
                        .pages = {.dtype = bounds.pages.dtype,
                                  .kv_heads = bounds.pages.kv_heads,
                                  .head_dim = bounds.pages.head_dim,
                                  .block_tokens = bounds.pages.block_tokens},
                        .table = {.count_max = 1, .end_max = bounds.sequence_tokens}};
  // Sequences of chunks are taken apart if they do not fit together.
  args.table.blocks_end = static_cast<uint32_t>(BlocksOf(bounds));
  if (bounds.pages.dtype != activations) most = std::max(most, WidePagesBytes(args));
  if (!DecodeAttentionFits(args)) return most;
  // A recorded step is filled up, in rows and in length. The fewer sequences, the more parts has
  // each: neither end must be the largest.
  args.table.end_max = std::bit_ceil(bounds.sequence_tokens);
  for (args.table.count = 1; args.table.count <= bounds.sequences + kPaddedRows;
       ++args.table.count) {
    most = std::max(most, DecodeAttentionScratchBytes(launch, args));
  }
  return most;
}

}  // namespace baton::cuda
