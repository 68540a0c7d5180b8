#include "prefill_worker/prefill_scheduler.h"

#include <algorithm>

#include "common/base/check.h"

namespace baton {
namespace {

bool GoesBefore(const Sequence* a, const Sequence* b) {
  if (a->priority != b->priority) return a->priority > b->priority;
  return a->arrival < b->arrival;
}

}  // namespace

void PrefillScheduler::Add(Sequence* sequence) {
  BATON_CHECK(std::find(queue_.begin(), queue_.end(), sequence) == queue_.end());
  queue_.insert(std::upper_bound(queue_.begin(), queue_.end(), sequence, GoesBefore), sequence);
}

void PrefillScheduler::Remove(const Sequence* sequence) { std::erase(queue_, sequence); }

std::vector<StepItem> PrefillScheduler::Plan(uint32_t budget, const Reserve& reserve) const {
  std::vector<StepItem> items;
  bool somebody_waits = false;
  for (Sequence* sequence : queue_) {
    if (budget == 0) break;
    const bool has_blocks = sequence->blocks.size() > 0;
    if (somebody_waits && !has_blocks) continue;
    if (!reserve(*sequence)) {
      somebody_waits = true;
      continue;
    }
    const uint32_t count = std::min(budget, sequence->pending());
    items.push_back({.sequence = sequence, .count = count});
    budget -= count;
  }
  return items;
}

uint64_t PrefillScheduler::queued_tokens() const {
  uint64_t tokens = 0;
  for (const Sequence* sequence : queue_) tokens += sequence->pending();
  return tokens;
}

}  // namespace baton
