// What a worker process asks of its engine, whatever its role: messages and the time in, steps on
// demand. One thread calls it.
#ifndef BATON_COMMON_ENGINE_WORKER_ENGINE_H_
#define BATON_COMMON_ENGINE_WORKER_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_transfer/transfer_event.h"
#include "proto/types.pb.h"
#include "proto/worker.pb.h"

namespace baton {

// Asked at the end of a step; simulated in tests.
using ClockFunction = std::function<Instant()>;

// Totals since start; 0 where a role does not know such a thing.
struct EngineStats {
  uint64_t prompt_tokens = 0;  // Computed by prefill and replays.
  uint64_t cached_tokens = 0;  // Found in the prefix cache instead.
  uint64_t decode_tokens = 0;
  uint64_t finished = 0;  // Decode: sequences that ended well; prefill: first tokens sampled.
  uint64_t failed = 0;
  uint64_t rejected = 0;
  uint64_t moved = 0;        // Decode: sequences that went to another worker with their KV.
  uint64_t preempted = 0;    // Running sequences that gave up their blocks.
  uint64_t swapped_out = 0;  // Of these, went to the host's memory with their KV.
  uint64_t swapped_in = 0;   // And came back.
  uint64_t steps = 0;
  uint64_t steps_ahead = 0;  // Of these, started before the one before them had ended.
  uint64_t step_rows = 0;    // Decode rows of all steps: step_rows / steps is the mean batch.
};

class WorkerEngine {
 public:
  virtual ~WorkerEngine() = default;

  virtual void OnCommand(Incarnation router, const v1::Command& command, Instant now) = 0;
  // Retires everything of that router.
  virtual void OnSessionClosed(Incarnation router) = 0;
  virtual void OnTransferEvent(const TransferEvent& event, Instant now) = 0;
  // Ends what is past its deadline. Called several times a second.
  virtual void OnTick(Instant now) = 0;
  // From now on new work is refused with UNAVAILABLE; what is here goes on.
  virtual void BeginDrain() = 0;

  // Whether Step() might compute something, or has to forget what was computed for nobody.
  virtual bool HasWork() const = 0;
  // One forward pass. False if nothing can be computed now: wait for an event.
  virtual bool Step(Instant now) = 0;

  virtual v1::WorkerLoad Load() const = 0;
  virtual const EngineStats& stats() const = 0;
  // No request is here.
  virtual bool idle() const = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_WORKER_ENGINE_H_
