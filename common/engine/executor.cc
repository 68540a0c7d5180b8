#include "common/engine/executor.h"

#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace baton {

absl::StatusOr<std::vector<std::optional<SampledToken>>> Executor::Run(
    std::span<const StepItem> items, const LayerDone& layer_done) {
  std::vector<BatchRow> rows;
  rows.reserve(items.size());
  uint32_t logit_rows = 0;
  for (const StepItem& item : items) {
    const Sequence& sequence = *item.sequence;
    BATON_CHECK(item.count > 0);
    BATON_CHECK(item.count <= sequence.pending());
    const bool samples = item.count == sequence.pending();
    rows.push_back({.tokens = std::span(sequence.tokens).subspan(sequence.computed, item.count),
                    .start = sequence.computed,
                    .blocks = sequence.blocks.blocks(),
                    .logit_count = samples ? 1u : 0u});
    logit_rows += samples ? 1 : 0;
  }
  const size_t vocab = model_->config().vocab_size;
  logits_.resize(logit_rows * vocab);
  BATON_RETURN_IF_ERROR(model_->Forward(rows, *arena_, logits_, layer_done));

  std::vector<std::optional<SampledToken>> sampled(items.size());
  size_t next_row = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    Sequence& sequence = *items[i].sequence;
    sequence.computed += items[i].count;
    if (rows[i].logit_count == 0) continue;
    const std::span<float> logits = std::span(logits_).subspan(next_row++ * vocab, vocab);
    sampled[i] =
        Sample(logits, sequence.tokens, sequence.prompt_tokens, sequence.sampling, sequence.stop);
    sequence.tokens.push_back(sampled[i]->id);
  }
  return sampled;
}

}  // namespace baton
