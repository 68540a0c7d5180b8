// DecodeEngine: steps that are started before the one before them has ended. See "A step ahead" in
// DESIGN_NOTES.md.
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "decode_worker/decode_engine.h"

namespace baton {

std::vector<StepItem> DecodeEngine::StartedItems() {
  std::vector<StepItem> items;
  for (const Executor::StartedRow& row : executor_->started()) {
    Slot* slot = Find(row.key);
    // What has ended, moves, or is another attempt at the same request has no part in it.
    if (slot == nullptr || slot->sequence.arrival != row.arrival) continue;
    if (slot->state == State::kRunning) items.push_back({.sequence = &slot->sequence, .count = 1});
  }
  return items;
}

std::vector<StepItem> DecodeEngine::PlanAhead(std::span<const StepItem> items) {
  // Chunks of prompts wait for the next step: it is not to be filled without them. And one that
  // has no blocks is not to wait for those of others for ever.
  if (!scheduler_.empty()) return {};
  absl::flat_hash_set<const Sequence*> in_step;
  for (const StepItem& item : items) in_step.insert(item.sequence);
  std::vector<StepItem> ahead;
  for (Slot* slot : RunningSlots()) {
    Sequence& sequence = slot->sequence;
    const uint32_t tokens = sequence.token_count() + (in_step.contains(&sequence) ? 1 : 0);
    // With the token of this step it ends, or moves, in any case.
    if (tokens >= sequence.total_tokens_max) continue;
    if (slot->next_home.has_value() && tokens > slot->next_home->prompt_tokens) continue;
    // Nobody gives way for a step that may be of no use.
    if (!ReserveBlocks(*pool_, block_tokens_, tokens, sequence).ok()) return {};
    ahead.push_back({.sequence = &sequence, .count = 1});
  }
  return ahead;
}

void DecodeEngine::GiveBackBlocks(Sequence& sequence) {
  if (executor_->IsStarted(sequence)) written_.push_back(std::move(sequence.blocks));
  sequence.GiveUpBlocks();
}

bool DecodeEngine::ForgetStarted() {
  if (executor_->started().empty()) return false;
  executor_->Forget();
  written_.clear();
  return true;
}

bool DecodeEngine::TakeBackWritten() {
  if (written_.empty()) return false;
  executor_->Settle();
  written_.clear();
  return true;
}

}  // namespace baton
