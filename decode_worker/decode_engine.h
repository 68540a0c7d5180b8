// The core of a decode worker: leases blocks to requests, lets their KV land or computes it itself,
// runs the autoregressive loop over all of them together, and ends each exactly once.
//
// Pure: commands, transfer events and the time go in; events and transfer commands come out through
// the ports. One thread calls it. A step puts one row per running sequence and chunks of local
// prefill into the same forward pass. See "D's lease" in ARCHITECTURE.md.
#ifndef BATON_DECODE_WORKER_DECODE_ENGINE_H_
#define BATON_DECODE_WORKER_DECODE_ENGINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/deadline_index.h"
#include "common/engine/executor.h"
#include "common/engine/ports.h"
#include "common/engine/probe_relay.h"
#include "common/engine/rate_meter.h"
#include "common/engine/sequence.h"
#include "common/engine/worker_engine.h"
#include "common/kv_cache/block_pool.h"
#include "common/kv_cache/swap_space.h"
#include "prefill_worker/prefill_scheduler.h"
#include "proto/worker.pb.h"

namespace baton {

// Whether a decode worker computes prompts itself.
enum class LocalPrefill {
  kRefused,    // It does not.
  kOnRequest,  // When the router asks for it.
  kAlways,     // Whatever the router asks for: the colocated deployment.
};

struct DecodeEngineOptions {
  Incarnation incarnation{};
  uint32_t chunk_tokens = 512;   // Most local-prefill tokens of one step.
  uint32_t sequences_max = 256;  // Admitted at once; one more is refused.
  LocalPrefill local_prefill = LocalPrefill::kOnRequest;
};

class DecodeEngine final : public WorkerEngine {
 public:
  using RandomFunction = std::function<uint64_t()>;

  // Everything borrowed outlives the engine. `clock` is asked at the end of a step; `random` feeds
  // nonces and comes from a cryptographic source in production. `swap` takes the KV of sequences
  // that are preempted; null: they compute it again.
  DecodeEngine(const DecodeEngineOptions& options, Executor* executor, BlockPool* pool,
               EventPort* events, TransferPort* transfers, ClockFunction clock,
               RandomFunction random, std::unique_ptr<SwapSpace> swap = nullptr);
  ~DecodeEngine() override;

  // Admit, Reopen, Migrate, Cancel and Probe; others are not for this role and are ignored.
  void OnCommand(Incarnation router, const v1::Command& command, Instant now) override;
  void OnSessionClosed(Incarnation router) override;
  void OnTransferEvent(const TransferEvent& event, Instant now) override;
  void OnTick(Instant now) override;
  void BeginDrain() override { draining_ = true; }

  bool HasWork() const override {
    return running_count_ > 0 || !scheduler_.empty() || !executor_->started().empty();
  }
  bool Step(Instant now) override;

  v1::WorkerLoad Load() const override;
  const EngineStats& stats() const override { return stats_; }
  // No request, no block in quarantine and none being sent or computed.
  bool idle() const override {
    return slots_.empty() && retiring_.empty() && moves_.empty() && executor_->started().empty();
  }
  size_t sequence_count() const { return slots_.size(); }

 private:
  enum class State {
    kReserved,  // A ticket is out: P fills the blocks of `epoch`.
    // That epoch ended. Nobody is told here: the router hears of it from P, or that P is gone, and
    // will reopen or cancel.
    kBroken,
    kPrefilling,  // Local prefill, or the replay of a preempted sequence.
    kRunning,     // All but the last token is in the cache.
    kMoving,      // As kRunning, but it stands still while its KV goes to another worker.
  };
  // The KV that a preempted sequence had.
  struct SwappedKv {
    SwappedBlocks blocks;
    uint32_t unseen_blocks = 0;  // Leading ones that no layer shows any more: not kept.
    uint32_t computed = 0;       // As in Sequence.
    uint32_t published_blocks = 0;
    PrefixHash published_hash;
  };
  struct Slot {
    Sequence sequence;
    State state = State::kPrefilling;
    LeaseId lease{};
    Epoch epoch{};
    uint32_t held_blocks = 0;   // Leading blocks that no epoch may write.
    uint32_t shown_tokens = 0;  // Tokens at admission: the router has these.
    Instant first_token_at{};
    // Where it is to go on, as soon as a token follows those that the ticket is for.
    std::optional<Ticket> next_home;
    TransferId move{};                    // While kMoving.
    std::optional<SwappedKv> swapped;     // While it holds no blocks.
    std::deque<std::string> said_tokens;  // The last ones as sent, where log-probabilities count.
  };
  // The KV of a sequence on its way to another worker.
  struct Move {
    RequestKey key;
    uint64_t nonce = 0;           // Of the ticket: its lower half.
    std::vector<BlockId> pinned;  // Read by the transport until TransferReleased.
    Instant began{};
  };
  using Slots = absl::btree_map<RequestKey, std::unique_ptr<Slot>>;

  void OnAdmit(Incarnation router, const v1::Admit& admit, Instant now);
  void OnReopen(Incarnation router, const v1::Reopen& reopen);
  void OnFilled(const LeaseFilled& filled, Instant now);

  // Moves (decode_engine_moves.cc).
  void OnMigrate(Incarnation router, const v1::Migrate& migrate, Instant now);
  void BeginMoveIfDue(Slot& slot, Instant now);
  absl::Status BeginMove(Slot& slot, const Ticket& ticket, Instant now);
  void StopMove(Slot& slot);
  void StopLateMoves(Instant now);
  void OnMoved(const TransferAcked& acked, Instant now);
  void OnMoveFailed(const TransferFailed& failed, Instant now);
  void SayMoveFailed(const Slot& slot, uint64_t nonce, const absl::Status& status, bool transfer);
  void ReleaseMove(TransferId id);
  // The slot that stands still for this transfer; null if it is gone or runs on.
  Slot* FindByMove(TransferId id);
  void RememberToken(Slot& slot, const v1::Token& token);

  absl::Status CheckRoom(const Sequence& sequence) const;
  // Blocks for all of its tokens.
  absl::Status ReserveAll(Sequence& sequence);
  // Opens epoch+1 on fresh blocks and answers with the ticket, or starts local prefill.
  absl::Status Open(Slot& slot, bool local_prefill_asked);
  // Ends the current epoch: its blocks wait in quarantine until nothing can land in them.
  void RetireEpoch(Slot& slot);

  // Those that decode, in the order in which they get room: who has waited longest is the last to
  // be preempted.
  std::vector<Slot*> RunningSlots() const;
  // Gives every running sequence room for its next token, preempting others where there is none.
  std::vector<StepItem> PlanDecodeRows();
  // Local prefill, replays, and sequences that come back with their KV.
  std::vector<StepItem> PlanChunks(Instant now);
  void CountStep(std::span<const StepItem> items, size_t decode_rows, Duration duration);

  // Steps that are started before the one before them has ended (decode_engine_ahead.cc).
  // Those of the step that was started that are still here, and run.
  std::vector<StepItem> StartedItems();
  // As Executor::PlanAhead, while `items` run.
  std::vector<StepItem> PlanAhead(std::span<const StepItem> items);
  // Waits for the step that was started, if there is one, and forgets it. Whether there was.
  bool ForgetStarted();
  // Of one that is no more. Nobody else may have them as long as the device may write them.
  void GiveBackBlocks(Sequence& sequence);
  // Waits until the device writes none of those. Whether there were any.
  bool TakeBackWritten();

  // Preemption (decode_engine_preemption.cc).
  // Makes room for the sequence's next token, if need be by preempting others.
  bool Grow(Slot& slot);
  // Publishes what is full, and keeps only what will be read. Not while a lease is open.
  void KeepBlocks(Sequence& sequence);
  // Of those that hold blocks and could give them up: the lowest priority, then the youngest.
  Slot* ChooseVictim();
  void Preempt(Slot& slot);
  // Whether bringing the sequence's KV back will be sooner than computing it again.
  bool SwapPays(const Sequence& sequence) const;
  void SwapOut(Slot& slot);
  // False: it stays without blocks.
  bool ReserveForPrefill(Slot& slot, Instant now);
  bool ReserveReplay(Sequence& sequence);
  bool SwapIn(Slot& slot);
  // Blocks for all tokens, with room to grow beside those that run.
  bool ReserveWithGrowth(Sequence& sequence);

  void OnSampled(Slot& slot, const SampledToken& token, Instant now);
  void EmitToken(const Slot& slot, v1::Token token);
  void FlushTokens();
  void FinishIfEnded(Slot& slot, Instant now);
  void Reject(RequestKey key, const absl::Status& status);
  void Fail(RequestKey key, const absl::Status& status, bool retryable);
  // Takes the request out, whatever its state.
  void Drop(RequestKey key);
  void SetState(Slot& slot, State state);
  Slot* Find(RequestKey key);
  Slot* FindByLease(LeaseId lease, Epoch epoch);

  const DecodeEngineOptions options_;
  Executor* const executor_;
  BlockPool* const pool_;
  EventPort* const events_;
  TransferPort* const transfers_;
  const ClockFunction clock_;
  const RandomFunction random_;
  const uint32_t block_tokens_;

  const std::unique_ptr<SwapSpace> swap_;  // Null if there is none.
  Slots slots_;
  DeadlineIndex<RequestKey> deadlines_;  // Of slots_.
  PrefillScheduler scheduler_;
  absl::flat_hash_map<LeaseId, RequestKey> lease_owner_;
  std::map<std::pair<LeaseId, Epoch>, std::vector<BlockId>> retiring_;  // Quarantined blocks.
  std::map<TransferId, Move> moves_;                                    // Not released.
  std::vector<BlockTable> written_;  // Of nobody any more, but a step that was started writes them.
  ProbeRelay probes_;
  std::map<Incarnation, v1::Event> unsent_tokens_;  // By router, of the current step.
  uint32_t running_count_ = 0;
  uint64_t next_arrival_ = 0;
  uint64_t next_lease_ = 1;
  uint64_t next_move_ = 1;
  Instant step_ended_{};
  bool draining_ = false;
  RateMeter prefill_rate_;
  RateMeter decode_rate_;
  RateMeter swap_rate_;  // Bytes, either way.
  EngineStats stats_;
};

}  // namespace baton

#endif  // BATON_DECODE_WORKER_DECODE_ENGINE_H_
