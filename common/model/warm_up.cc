#include "common/model/warm_up.h"

#include <algorithm>
#include <vector>

#include "common/base/status_macros.h"
#include "common/kernels/kernels.h"
#include "common/kernels/sample_row.h"

namespace baton {
namespace {

// The first step of a size runs as it is, the second may be recorded.
constexpr int kStepsOfSize = 2;

absl::Status Compute(Model& model, KvArena& cache, const std::vector<BatchRow>& rows) {
  const std::vector<SampleRow> samples(rows.size());
  std::vector<TokenId> tokens(rows.size());
  return model.ForwardAndSample(rows, cache, {.samples = samples, .edits = {}, .tokens = tokens},
                                nullptr);
}

// As many tokens of it as the context and the cache have room for.
absl::Status ComputeChunk(Model& model, KvArena& cache, uint32_t tokens_max) {
  const KvLayout& layout = cache.layout();
  const auto count =
      static_cast<uint32_t>(std::min({uint64_t{tokens_max}, uint64_t{model.config().context_tokens},
                                      uint64_t{cache.block_count()} * layout.block_tokens}));
  const std::vector<TokenId> tokens(count, TokenId{0});
  std::vector<BlockId> blocks;
  for (uint32_t i = 0; i < layout.BlocksFor(count); ++i) blocks.push_back(BlockId{i});
  return Compute(model, cache,
                 {{.tokens = tokens, .start = 0, .blocks = blocks, .logit_count = 1}});
}

// Of sequences at their first token. They share blocks if there are too few: nobody reads them.
absl::Status ComputeDecodeStep(Model& model, KvArena& cache, uint32_t sequences) {
  const TokenId token = 0;
  std::vector<BlockId> blocks;
  for (uint32_t i = 0; i < sequences; ++i) blocks.push_back(BlockId{i % cache.block_count()});
  std::vector<BatchRow> rows;
  for (const BlockId& block : blocks) {
    rows.push_back({.tokens = {&token, 1}, .start = 0, .blocks = {&block, 1}, .logit_count = 1});
  }
  return Compute(model, cache, rows);
}

}  // namespace

absl::StatusOr<uint32_t> WarmUp(Model& model, KvArena& cache, const WarmUpOptions& options) {
  uint32_t steps = 0;
  if (!model.samples_tokens()) return steps;
  if (options.chunk_tokens > 0) {
    BATON_RETURN_IF_ERROR(ComputeChunk(model, cache, options.chunk_tokens));
    ++steps;
  }
  // Longer ones are not filled up, and never recorded.
  const uint32_t sequences_max = std::min(options.sequences_max, kStartedRowsMax);
  for (uint32_t least = 1; least <= sequences_max;) {
    const uint32_t most = std::max(least, model.PaddedRows(least));
    for (int i = 0; i < kStepsOfSize; ++i, ++steps) {
      BATON_RETURN_IF_ERROR(ComputeDecodeStep(model, cache, std::min(most, sequences_max)));
    }
    least = most + 1;
  }
  return steps;
}

}  // namespace baton
