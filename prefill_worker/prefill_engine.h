// The core of a prefill worker: computes prompts in chunks, pushes each layer's KV to the decode
// worker that promised room for it, samples the first token.
//
// Pure: commands, transfer events and the time go in; events and transfer commands come out through
// the ports. One thread calls it. See "Life of a request" in ARCHITECTURE.md.
#ifndef BATON_PREFILL_WORKER_PREFILL_ENGINE_H_
#define BATON_PREFILL_WORKER_PREFILL_ENGINE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "common/base/clock.h"
#include "common/base/deadline_index.h"
#include "common/engine/executor.h"
#include "common/engine/ports.h"
#include "common/engine/probe_relay.h"
#include "common/engine/rate_meter.h"
#include "common/engine/sequence.h"
#include "common/engine/worker_engine.h"
#include "common/kv_cache/block_pool.h"
#include "prefill_worker/prefill_scheduler.h"
#include "proto/worker.pb.h"

namespace baton {

struct PrefillEngineOptions {
  uint32_t chunk_tokens = 512;  // Most tokens of one step.
  // Prompts here at once, computed or on their way to decode workers; one more is rejected.
  uint32_t jobs_max = 256;
};

class PrefillEngine final : public WorkerEngine {
 public:
  // Everything borrowed outlives the engine. `clock` is asked at the end of a step.
  PrefillEngine(const PrefillEngineOptions& options, Executor* executor, BlockPool* pool,
                EventPort* events, TransferPort* transfers, ClockFunction clock);
  ~PrefillEngine() override;

  // Prefill, Cancel and Probe; others are not for this role and are ignored.
  void OnCommand(Incarnation router, const v1::Command& command, Instant now) override;
  void OnSessionClosed(Incarnation router) override;
  void OnTransferEvent(const TransferEvent& event, Instant now) override;
  void OnTick(Instant now) override;
  void BeginDrain() override { draining_ = true; }

  bool HasWork() const override { return !scheduler_.empty(); }
  bool Step(Instant now) override;

  v1::WorkerLoad Load() const override;
  const EngineStats& stats() const override { return stats_; }
  // Nothing is queued, computed or pinned.
  bool idle() const override { return jobs_.empty() && closing_.empty(); }
  size_t job_count() const { return jobs_.size(); }

 private:
  struct Job {
    Sequence sequence;
    std::optional<Ticket> ticket;
    std::optional<TransferId> transfer;  // Begun and not released.
    bool started = false;
    absl::Status push_error;  // The first push that was refused.
  };

  void OnPrefill(Incarnation router, const v1::Prefill& prefill, Instant now);
  // Takes blocks and opens the transfer. False: no room now.
  bool Start(Job& job, Instant now);
  void PushLayer(std::span<const StepItem> items, uint32_t layer);
  void FinishPrompt(Job& job, const SampledToken& token, Instant now);
  // For what went wrong in this worker: the way to the decode worker is not suspect.
  void Fail(RequestKey key, const absl::Status& status, bool retryable);
  // Takes the job out; its blocks stay pinned until the transfer is released.
  void Close(RequestKey key, bool abort_transfer);
  Job* FindByTransfer(TransferId id);
  void SendFailure(RequestKey key, Epoch epoch, const absl::Status& status, bool retryable,
                   bool transfer);

  const PrefillEngineOptions options_;
  Executor* const executor_;
  BlockPool* const pool_;
  EventPort* const events_;
  TransferPort* const transfers_;
  const ClockFunction clock_;
  const uint32_t block_tokens_;

  PrefillScheduler scheduler_;
  absl::btree_map<RequestKey, std::unique_ptr<Job>> jobs_;  // In order: they end in order.
  DeadlineIndex<RequestKey> deadlines_;                     // Of jobs_.
  absl::flat_hash_map<TransferId, RequestKey> transfer_owner_;
  // Jobs that ended while UCX still reads their blocks.
  absl::flat_hash_map<TransferId, std::unique_ptr<Job>> closing_;
  ProbeRelay probes_;

  bool draining_ = false;
  uint64_t next_arrival_ = 0;
  uint64_t next_transfer_ = 1;
  RateMeter rate_;
  EngineStats stats_;
};

}  // namespace baton

#endif  // BATON_PREFILL_WORKER_PREFILL_ENGINE_H_
