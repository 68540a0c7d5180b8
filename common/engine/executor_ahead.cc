// Executor: decode steps that are started before the one before them has ended.
#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/engine/executor.h"
#include "common/sampling/sample_plan.h"

namespace baton {

std::span<const Executor::StartedRow> Executor::started() const {
  return started_.empty() ? std::span<const StartedRow>() : started_.front().rows;
}

void Executor::Settle() {
  for (Started& step : started_) Finish(step);
}

void Executor::Forget() {
  Settle();
  started_.clear();
}

void Executor::Finish(Started& step) {
  if (step.finished.has_value()) return;
  step.tokens.resize(step.rows.size());
  step.finished = model_->FinishStep(step.tokens);
}

std::optional<uint32_t> Executor::StartedRowOf(const Sequence& sequence) const {
  if (started_.empty()) return std::nullopt;
  const auto row = started_.back().row_of.find(sequence.arrival);
  return row == started_.back().row_of.end() ? std::nullopt : std::optional(row->second);
}

bool Executor::CanStart(const Sequence& sequence) const {
  // Log-probabilities come from logits that the host must see.
  if (sequence.pending() != 1 || sequence.sampling.logprobs.has_value()) return false;
  return !StartedRowOf(sequence).has_value() || DisregardsTokens(sequence.sampling);
}

std::optional<Executor::Draft> Executor::DraftStep(std::span<const StepItem> items) {
  const bool can_start = model_->CanStart(items.size()) &&
                         std::all_of(items.begin(), items.end(), [this](const StepItem& item) {
                           return item.count == 1 && CanStart(*item.sequence);
                         });
  if (!can_start) return std::nullopt;
  Draft draft;
  edits_.clear();
  for (const StepItem& item : items) {
    Sequence& sequence = *item.sequence;
    const std::optional<uint32_t> chosen_by = StartedRowOf(sequence);
    const uint32_t unknown = chosen_by.has_value() ? 1 : 0;
    const SamplePlan& plan =
        chosen_by.has_value() ? sequence.planner.PlanAhead(
                                    model_->config().vocab_size, sequence.tokens.size() + unknown,
                                    sequence.prompt_tokens, sequence.sampling, sequence.stop)
                              : PlanOf(sequence);
    if (!AppendEdits(plan, draft.samples.emplace_back(plan.row))) return std::nullopt;
    draft.step.row_of[sequence.arrival] = static_cast<uint32_t>(draft.rows.size());
    draft.step.rows.push_back({sequence.key, sequence.arrival});
    draft.rows.push_back({.token = chosen_by.has_value() ? TokenId{0} : sequence.tokens.back(),
                          .chosen_by = chosen_by,
                          .start = sequence.computed + unknown,
                          .blocks = sequence.blocks.blocks()});
  }
  return draft;
}

absl::Status Executor::Start(Draft draft) {
  BATON_RETURN_IF_ERROR(model_->StartStep(draft.rows, *arena_, draft.samples, edits_));
  started_.push_back(std::move(draft.step));
  return absl::OkStatus();
}

absl::StatusOr<Executor::Sampled> Executor::RunStarted(std::span<const StepItem> items,
                                                       const PlanAhead& ahead) {
  // Who is left out may come back with the next step, and goes on from what is known of it.
  absl::flat_hash_map<uint64_t, uint32_t> row_of;
  for (const StepItem& item : items) {
    BATON_CHECK(item.count == 1 && item.sequence->pending() == 1);
    const uint64_t arrival = item.sequence->arrival;
    row_of[arrival] = started_.front().row_of.at(arrival);
  }
  started_.front().row_of = std::move(row_of);
  if (ahead != nullptr) {
    const std::vector<StepItem> next = ahead();
    std::optional<Draft> draft = next.empty() ? std::nullopt : DraftStep(next);
    // What fails to start is run once this step has ended, and may fail again then.
    if (draft.has_value()) Start(*std::move(draft)).IgnoreError();
  }
  Finish(started_.front());
  const absl::Status status = *started_.front().finished;
  if (!status.ok()) {
    Forget();
    return status;
  }
  Sampled sampled(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    Sequence& sequence = *items[i].sequence;
    const uint32_t row = started_.front().row_of.at(sequence.arrival);
    sampled[i].emplace().id = started_.front().tokens[row];
    ++sequence.computed;
    sequence.tokens.push_back(sampled[i]->id);
  }
  started_.pop_front();
  return sampled;
}

}  // namespace baton
