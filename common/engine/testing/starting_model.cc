#include "common/engine/testing/starting_model.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/sampling/sample_plan.h"
#include "common/sampling/sampler.h"

namespace baton {
namespace {

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): good bits from neighbouring seeds, too.
uint64_t Draw(uint64_t* state) {
  uint64_t bits = *state += 0x9E3779B97F4A7C15ull;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ull;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBull;
  return bits ^ (bits >> 31);
}

absl::Status ForwardAndChoose(Model& model, std::span<const BatchRow> rows, KvArena& cache,
                              const TokenChoice& choice, const Model::LayerDone& layer_done) {
  const size_t vocab = model.config().vocab_size;
  std::vector<float> all(choice.samples.size() * vocab);
  BATON_RETURN_IF_ERROR(model.Forward(rows, cache, all, layer_done));
  const auto logits = [&](size_t row) { return std::span(all).subspan(row * vocab, vocab); };
  for (size_t i = 0; i < choice.raw_rows.size(); ++i) {
    std::ranges::copy(logits(choice.raw_rows[i]), choice.raw_logits.subspan(i * vocab).begin());
  }
  for (size_t i = 0; i < choice.samples.size(); ++i) {
    const SampleRow& row = choice.samples[i];
    const auto edits = choice.edits.subspan(row.edits_begin, row.edits_end - row.edits_begin);
    const SamplePlan plan = {.row = row, .edits = {edits.begin(), edits.end()}};
    choice.tokens[i] = Sample(logits(i), plan, std::nullopt).id;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StartingModel::Forward(std::span<const BatchRow> rows, KvArena& cache,
                                    std::span<float> logits, const LayerDone& layer_done) {
  BATON_CHECK(started_.empty());
  return model_->Forward(rows, cache, logits, layer_done);
}

absl::Status StartingModel::ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                             const TokenChoice& choice,
                                             const LayerDone& layer_done) {
  BATON_CHECK(started_.empty());
  return ForwardAndChoose(*model_, rows, cache, choice, layer_done);
}

absl::Status StartingModel::StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                                      std::span<const SampleRow> samples,
                                      std::span<const LogitEdit> edits) {
  BATON_CHECK(CanStart(rows.size()) && started_.size() < 2 && samples.size() == rows.size());
  const size_t rows_before = started_.empty() ? chosen_.size() : started_.back().rows.size();
  StartedStep& step = started_.emplace_back();
  step.cache = &cache;
  step.samples.assign(samples.begin(), samples.end());
  step.edits.assign(edits.begin(), edits.end());
  for (const DecodeRow& row : rows) {
    BATON_CHECK(row.chosen_by.value_or(0) < rows_before || !row.chosen_by.has_value());
    step.rows.push_back({.row = row, .blocks = {row.blocks.begin(), row.blocks.end()}});
  }
  const uint64_t drawn = Draw(&draws_);
  if (drawn % 2 == 0) return absl::OkStatus();
  ComputeFirst(started_.size());
  // What fails shows at once, or when the step is waited for.
  const absl::Status status = *step.status;
  if (status.ok() || drawn % 4 == 1) return absl::OkStatus();
  started_.pop_back();
  return status;
}

void StartingModel::ComputeFirst(size_t count) {
  for (size_t i = 0; i < count; ++i) {
    StartedStep& step = started_[i];
    if (!step.status.has_value()) step.status = Compute(step);
  }
}

absl::Status StartingModel::Compute(StartedStep& step) {
  std::vector<BatchRow> rows;
  for (StartedRow& started : step.rows) {
    DecodeRow& row = started.row;
    if (row.chosen_by.has_value()) row.token = chosen_.at(*row.chosen_by);
    rows.push_back({.tokens = {&row.token, 1},
                    .start = row.start,
                    .blocks = started.blocks,
                    .logit_count = 1});
  }
  step.tokens.resize(rows.size());
  chosen_ = step.tokens;  // After an error the next step has some tokens to begin with, too.
  BATON_RETURN_IF_ERROR(ForwardAndChoose(
      *model_, rows, *step.cache,
      {.samples = step.samples, .edits = step.edits, .tokens = step.tokens}, nullptr));
  chosen_ = step.tokens;
  return absl::OkStatus();
}

absl::Status StartingModel::FinishStep(std::span<TokenId> tokens) {
  BATON_CHECK(!started_.empty());
  ComputeFirst(1);
  const StartedStep step = std::move(started_.front());
  started_.pop_front();
  BATON_CHECK(tokens.size() == step.tokens.size());
  std::ranges::copy(step.tokens, tokens.begin());
  return *step.status;
}

}  // namespace baton
