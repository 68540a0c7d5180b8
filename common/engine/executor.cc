#include "common/engine/executor.h"

#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/sampling/sample_plan.h"

namespace baton {

absl::StatusOr<Executor::Sampled> Executor::Run(std::span<const StepItem> items,
                                                const LayerDone& layer_done,
                                                const PlanAhead& ahead) {
  BATON_CHECK(layer_done == nullptr || (ahead == nullptr && started_.empty()));
  if (started_.empty() && ahead != nullptr) {
    std::optional<Draft> draft = DraftStep(items);
    if (draft.has_value()) BATON_RETURN_IF_ERROR(Start(*std::move(draft)));
  }
  if (!started_.empty()) return RunStarted(items, ahead);
  std::vector<BatchRow> rows;
  std::vector<Sequence*> sampling;
  rows.reserve(items.size());
  for (const StepItem& item : items) {
    Sequence& sequence = *item.sequence;
    BATON_CHECK(item.count > 0);
    BATON_CHECK(item.count <= sequence.pending());
    const bool samples = item.count == sequence.pending();
    rows.push_back({.tokens = std::span(sequence.tokens).subspan(sequence.computed, item.count),
                    .start = sequence.computed,
                    .blocks = sequence.blocks.blocks(),
                    .logit_count = samples ? 1u : 0u});
    if (!samples) continue;
    sampling.push_back(&sequence);
  }
  BATON_ASSIGN_OR_RETURN(std::vector<SampledToken> tokens,
                         model_->samples_tokens() ? RunSampling(rows, sampling, layer_done)
                                                  : RunWithLogits(rows, sampling, layer_done));
  std::vector<std::optional<SampledToken>> sampled(items.size());
  size_t next = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    Sequence& sequence = *items[i].sequence;
    sequence.computed += items[i].count;
    if (rows[i].logit_count == 0) continue;
    sampled[i] = std::move(tokens[next++]);
    sequence.tokens.push_back(sampled[i]->id);
  }
  return sampled;
}

absl::StatusOr<std::vector<SampledToken>> Executor::RunSampling(std::span<const BatchRow> rows,
                                                                std::span<Sequence* const> sampling,
                                                                const LayerDone& layer_done) {
  const size_t vocab = model_->config().vocab_size;
  std::vector<SampleRow> samples;
  std::vector<uint32_t> raw_rows;
  edits_.clear();
  for (uint32_t i = 0; i < sampling.size(); ++i) {
    const SamplePlan& plan = PlanOf(*sampling[i]);
    SampleRow& row = samples.emplace_back(plan.row);
    const bool fits = AppendEdits(plan, row);
    if (!fits || sampling[i]->sampling.logprobs.has_value()) raw_rows.push_back(i);
  }
  logits_.resize(raw_rows.size() * vocab);
  std::vector<TokenId> ids(sampling.size());
  const TokenChoice choice = {.samples = samples,
                              .edits = edits_,
                              .tokens = ids,
                              .raw_rows = raw_rows,
                              .raw_logits = logits_};
  BATON_RETURN_IF_ERROR(model_->ForwardAndSample(rows, *arena_, choice, layer_done));
  std::vector<SampledToken> tokens(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) tokens[i].id = ids[i];
  for (size_t i = 0; i < raw_rows.size(); ++i) {
    const uint32_t row = raw_rows[i];
    const SamplePlan& plan = PlanOf(*sampling[row]);
    const std::span<float> logits = std::span(logits_).subspan(i * vocab, vocab);
    const std::optional<uint32_t> logprobs = sampling[row]->sampling.logprobs;
    const bool fitted = samples[row].edits_end - samples[row].edits_begin == plan.edits.size();
    if (fitted) {
      AddLogProbabilities(logits, *logprobs, &tokens[row]);
    } else {
      tokens[row] = Sample(logits, plan, logprobs);
    }
  }
  return tokens;
}

const SamplePlan& Executor::PlanOf(Sequence& sequence) const {
  return sequence.planner.Plan(model_->config().vocab_size, sequence.tokens, sequence.prompt_tokens,
                               sequence.sampling, sequence.stop);
}

bool Executor::AppendEdits(const SamplePlan& plan, SampleRow& row) {
  row.edits_begin = row.edits_end = static_cast<uint32_t>(edits_.size());
  if (edits_.size() + plan.edits.size() > kEditsMax) return false;
  edits_.insert(edits_.end(), plan.edits.begin(), plan.edits.end());
  row.edits_end = static_cast<uint32_t>(edits_.size());
  return true;
}

absl::StatusOr<std::vector<SampledToken>> Executor::RunWithLogits(
    std::span<const BatchRow> rows, std::span<Sequence* const> sampling,
    const LayerDone& layer_done) {
  const size_t vocab = model_->config().vocab_size;
  logits_.resize(sampling.size() * vocab);
  BATON_RETURN_IF_ERROR(model_->Forward(rows, *arena_, logits_, layer_done));
  std::vector<SampledToken> tokens;
  for (size_t i = 0; i < sampling.size(); ++i) {
    tokens.push_back(Sample(std::span(logits_).subspan(i * vocab, vocab), PlanOf(*sampling[i]),
                            sampling[i]->sampling.logprobs));
  }
  return tokens;
}

}  // namespace baton
