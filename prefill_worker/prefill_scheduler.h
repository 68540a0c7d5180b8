// Which prompt tokens to compute next: FIFO within priority, in chunks, several short prompts
// together.
//
// Pure. Holds borrowed sequences; whoever owns one removes it here before it goes.
#ifndef BATON_PREFILL_WORKER_PREFILL_SCHEDULER_H_
#define BATON_PREFILL_WORKER_PREFILL_SCHEDULER_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "common/engine/executor.h"
#include "common/engine/sequence.h"

namespace baton {

class PrefillScheduler {
 public:
  // Makes sure that a sequence has blocks for all its tokens. False: not now.
  using Reserve = std::function<bool(Sequence&)>;

  // REQUIRES: not added yet.
  void Add(Sequence* sequence);
  // Nothing happens if it is not here.
  void Remove(const Sequence* sequence);

  // The next chunks, at most `budget` tokens in all. A prompt is started only with all its blocks
  // reserved; when one cannot be, none behind it is started either. Those that have their blocks go
  // on: what the others wait for comes from their end.
  std::vector<StepItem> Plan(uint32_t budget, const Reserve& reserve) const;

  bool empty() const { return queue_.empty(); }
  size_t size() const { return queue_.size(); }
  // Tokens of all prompts here that are not computed yet.
  uint64_t queued_tokens() const;

 private:
  std::vector<Sequence*> queue_;  // Highest priority first, then order of arrival.
};

}  // namespace baton

#endif  // BATON_PREFILL_WORKER_PREFILL_SCHEDULER_H_
