// DecodeEngine: who gives up blocks when there are too few, and how it comes back: with its KV from
// the swap space, or by computing it again. See "Growth, and who gives way" in
// DESIGN_NOTES.md.
#include <algorithm>
#include <span>
#include <utility>

#include "common/base/check.h"
#include "decode_worker/decode_engine.h"

namespace baton {

DecodeEngine::Slot* DecodeEngine::ChooseVictim() {
  Slot* victim = nullptr;
  for (const auto& [key, slot] : slots_) {
    const bool holds = slot->sequence.blocks.size() > 0 &&
                       (slot->state == State::kRunning || slot->state == State::kPrefilling);
    if (!holds) continue;
    if (victim == nullptr || slot->sequence.priority < victim->sequence.priority ||
        (slot->sequence.priority == victim->sequence.priority &&
         slot->sequence.arrival > victim->sequence.arrival)) {
      victim = slot.get();
    }
  }
  BATON_CHECK(victim != nullptr);
  return victim;
}

void DecodeEngine::Preempt(Slot& slot) {
  BATON_CHECK(executor_->started().empty());  // Its blocks go to others at once.
  ++stats_.preempted;
  if (SwapPays(slot.sequence)) SwapOut(slot);
  slot.sequence.GiveUpBlocks();
  slot.held_blocks = 0;
  if (slot.state == State::kPrefilling) return;
  SetState(slot, State::kPrefilling);
  scheduler_.Add(&slot.sequence);
}

bool DecodeEngine::SwapPays(const Sequence& sequence) const {
  if (swap_ == nullptr || sequence.computed == 0) return false;
  // What was never measured is given the benefit of the doubt: copying will be measured at once, a
  // decode worker may never compute a prompt.
  if (swap_rate_.per_second() == 0 || prefill_rate_.per_second() == 0) return true;
  const double there_and_back =
      2.0 * static_cast<double>(executor_->arena().layout().token_bytes() * sequence.computed);
  return there_and_back / swap_rate_.per_second() < sequence.computed / prefill_rate_.per_second();
}

void DecodeEngine::SwapOut(Slot& slot) {
  const Sequence& sequence = slot.sequence;
  const KvLayout& layout = executor_->arena().layout();
  const std::span<const BlockId> blocks =
      sequence.blocks.blocks().first(layout.BlocksFor(sequence.computed));
  uint32_t unseen = 0;
  while (unseen < blocks.size() && blocks[unseen] == kNoBlock) ++unseen;
  const Instant begin = clock_();
  absl::StatusOr<SwappedBlocks> swapped = swap_->SwapOut(blocks.subspan(unseen));
  if (!swapped.ok()) return;  // No room, or an error of the device: it computes it again.
  swap_rate_.Add(static_cast<double>(swapped->size() * layout.block_bytes()), clock_() - begin);
  ++stats_.swapped_out;
  slot.swapped = SwappedKv{.blocks = *std::move(swapped),
                           .unseen_blocks = unseen,
                           .computed = sequence.computed,
                           .published_blocks = sequence.published_blocks,
                           .published_hash = sequence.published_hash};
}

bool DecodeEngine::ReserveForPrefill(Slot& slot, Instant now) {
  Sequence& sequence = slot.sequence;
  if (sequence.blocks.size() == 0) {
    const bool reserved = slot.swapped.has_value() ? SwapIn(slot) : ReserveReplay(sequence);
    if (!reserved) return false;
  }
  // The stages of a replay are not the request's.
  if (sequence.started == Instant{} && slot.first_token_at == Instant{}) sequence.started = now;
  return true;
}

bool DecodeEngine::ReserveReplay(Sequence& sequence) {
  const uint32_t cached_at_admission = sequence.cached_tokens;
  TakeCachedPrefix(*pool_, block_tokens_, sequence);
  sequence.cached_tokens = cached_at_admission;
  return ReserveWithGrowth(sequence);
}

bool DecodeEngine::SwapIn(Slot& slot) {
  Sequence& sequence = slot.sequence;
  const SwappedKv& swapped = *slot.swapped;
  if (swapped.unseen_blocks == 0) {
    // What others still have in common with it need not be there twice.
    const uint32_t cached_at_admission = sequence.cached_tokens;
    TakeCachedPrefix(*pool_, block_tokens_, sequence);
    sequence.cached_tokens = cached_at_admission;
  } else {
    sequence.blocks = BlockTable(pool_);
    sequence.blocks.AppendReleased(swapped.unseen_blocks);
    sequence.published_blocks = swapped.published_blocks;
    sequence.published_hash = swapped.published_hash;
  }
  const uint32_t present = sequence.blocks.size();
  if (!ReserveWithGrowth(sequence)) return false;

  const uint32_t end = swapped.unseen_blocks + swapped.blocks.size();
  const Instant begin = clock_();
  absl::Status copied;
  if (present < end) {
    copied = swap_->SwapIn(swapped.blocks, present - swapped.unseen_blocks,
                           sequence.blocks.blocks().subspan(present, end - present));
    swap_rate_.Add(static_cast<double>((end - present) * executor_->arena().layout().block_bytes()),
                   clock_() - begin);
  }
  if (copied.ok()) {
    sequence.computed = std::max(sequence.computed, swapped.computed);
    ++stats_.swapped_in;
  } else {
    sequence.GiveUpBlocks();  // The next time it computes everything again.
  }
  slot.swapped.reset();
  return copied.ok();
}

bool DecodeEngine::ReserveWithGrowth(Sequence& sequence) {
  // It starts only with room to grow, lest it be preempted again at once.
  const uint32_t wanted = executor_->arena().layout().BlocksFor(sequence.token_count()) -
                          sequence.blocks.size() + running_count_;
  const bool room = running_count_ == 0 || wanted <= pool_->counts().available();
  if (room && ReserveBlocks(*pool_, block_tokens_, sequence.token_count(), sequence).ok()) {
    return true;
  }
  sequence.GiveUpBlocks();
  return false;
}

}  // namespace baton
