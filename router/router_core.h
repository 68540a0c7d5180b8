// The router without threads, sockets and clock: requests, answers of workers and the time in,
// actions out.
//
// It decides what a client sees. Tokens are shown strictly by index, each once, only from the
// workers that hold the request's current placement; what a client has seen is input to every later
// placement and never sampled again; a request ends exactly once. See "The router decides what the
// client sees" in ARCHITECTURE.md.
//
// Single-threaded. After every call the shell performs TakeActions() in order.
#ifndef BATON_ROUTER_ROUTER_CORE_H_
#define BATON_ROUTER_ROUTER_CORE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "proto/inference.pb.h"
#include "proto/worker.pb.h"
#include "router/actions.h"
#include "router/admission.h"
#include "router/computed_share.h"
#include "router/pair_table.h"
#include "router/placement.h"
#include "router/request_table.h"
#include "router/worker_table.h"

namespace baton {

struct CoreOptions {
  QueueLimits queue;
  // A request that no worker could take for so long is refused.
  Duration queue_time_max = std::chrono::seconds(60);
  // Every request ends by then, whatever deadline its client gave.
  Duration request_time_max = std::chrono::hours(1);
  // How often one request is moved after failures that come one soon after the other.
  uint32_t retries_max = 3;
  // A prefill worker with work in hand is given no more tokens to compute than this; the rest waits
  // in the queue.
  uint64_t prefill_tokens_max = 8192;
  // A decode worker that has the KV of all but so many tokens of a request computes these itself.
  uint32_t local_prefill_tokens_max = 32;
  // What a client may leave unread before its request is ended.
  uint64_t client_buffer_bytes_max = 1u << 20;
  PairOptions pairs;
  ClusterPolicy cluster;
};

enum class RetryCause {
  kPrefillLost,    // The session of the prefill worker broke.
  kPrefillFailed,  // The prefill worker said so, or the transfer failed.
  kDecodeLost,
  kDecodeFailed,
  kTokensDiffer,  // A worker's tokens contradict what the client has seen.
  kRefused,       // A worker that goes away refused it.
};
inline constexpr size_t kRetryCauseCount = 6;
std::string RetryCauseName(RetryCause cause);

struct CoreCounters {
  std::array<uint64_t, kRetryCauseCount> retries{};
  uint64_t no_room = 0;    // A worker refused for lack of room; the request went back to the queue.
  uint64_t conflicts = 0;  // Tokens that contradict what the client has seen.
  uint64_t stale_events = 0;    // Events that matched no current placement.
  uint64_t local_prefills = 0;  // Placements without a prefill worker.
  uint64_t placements = 0;
  uint64_t moves = 0;  // Running requests that went on at another decode worker, with their KV.
  uint64_t moves_failed = 0;
  uint64_t tokens_shown = 0;
};

class RouterCore {
 public:
  explicit RouterCore(CoreOptions options);

  // Workers. The shell keeps a session to each and reports what comes over it.
  WorkerId AddWorker(std::string address, v1::Role role);
  // REQUIRES: its session is down.
  void RemoveWorker(WorkerId id);
  void OnWorkerUp(WorkerId id, const v1::WorkerHello& hello, Instant now);
  void OnWorkerEvent(WorkerId id, const v1::Event& event, Instant now);
  void OnWorkerDown(WorkerId id, const absl::Status& why, Instant now);

  // Tells the worker at this address to drain, and gives it no more work. kNotFound, kUnavailable:
  // as Inference.DrainWorker.
  absl::StatusOr<v1::DrainWorkerResponse> DrainWorker(const std::string& address, Instant now);

  // Clients. After OnRequest there is one Finish for that id, sooner or later.
  void OnRequest(NewRequest request, Instant now);
  void OnCancel(RequestId id, Instant now);
  // `bytes` of what was emitted for the request have left for the client.
  void OnWritten(RequestId id, uint64_t bytes);

  // Deadlines, probes, waiting requests. To be called every 50 ms or so: each call looks at all.
  void OnTick(Instant now);

  // From now on new requests are refused with kUnavailable; those inside go on.
  void Drain() { draining_ = true; }
  // Ends all requests with this status.
  void EndAll(const absl::Status& status, Instant now);

  std::vector<Action> TakeActions();

  // Workers and load, for people.
  v1::GetClusterResponse Cluster() const;
  const CoreCounters& counters() const { return counters_; }
  const WorkerTable& workers() const { return workers_; }
  const PairTable& pairs() const { return pairs_; }
  size_t request_count() const { return requests_.size(); }
  size_t attempt_count() const { return requests_.attempt_count(); }
  uint32_t queued_count() const { return queue_.size(); }
  uint64_t queued_tokens() const { return queue_.tokens(); }

 private:
  // How a request ends.
  struct Ending {
    absl::Status status = absl::OkStatus();
    v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
    uint32_t retry_after_ms = 0;
    std::optional<std::string> stop_string = std::nullopt;
    std::optional<WorkerId> knows = std::nullopt;  // The worker that said so: it needs no Cancel.
  };
  enum class Shown { kAll, kEnded, kConflict };

  // Requests (router_core.cc; Show is with the events).
  void Enqueue(Request& request, Instant now);
  void Place(Instant now);
  // As Place, if something has changed since that lets a request be placed.
  void PlaceIfDue(Instant now);
  // What a worker must have for the request.
  PlacementNeed NeedOf(const Request& request, std::optional<WorkerId> avoid) const;
  void StartPlacement(Request& request, const Placement& placement, Instant now);
  // Ends the current placement; says nothing to its workers.
  void Release(Request& request);
  void Requeue(Request& request, Instant now);
  void End(Request& request, Ending ending, Instant now);
  void EmitDelta(Request& request, v1::Delta delta, std::optional<Duration> pause);
  v1::Finished MakeFinished(const Request& request, const Ending& ending, Instant now) const;
  // Shows tokens in order, dropping repeats. kConflict: one did not fit what the client has seen.
  Shown Show(Request& request, const google::protobuf::RepeatedPtrField<v1::Token>& tokens,
             Instant now);
  std::optional<absl::Status> CannotMeetDeadline(const Request& request, Instant now) const;
  double PrefillTokensPerSecond() const;
  uint32_t RetryAfterMs() const;
  void EndExpired(Instant now);
  void EndOverdueInQueue(Instant now);
  // kUnavailable, with the reason, if the workers that are ready cannot serve anything.
  absl::Status WhatIsMissing() const;
  void SendProbes(Instant now);

  // Placements and their failures (router_core_placements.cc).
  void Send(WorkerId worker, v1::Command command);
  void SendPrefill(Request& request, Instant now);
  void CancelWorkers(const Request& request, std::optional<WorkerId> except);
  void AssignPrefill(Request& request, WorkerId prefill);
  void ReleasePrefill(Request& request);
  // `again`: the prefill worker that has computed it already, if it can still be used.
  void Reopen(Request& request, Instant now, std::optional<WorkerId> again = std::nullopt);
  // The KV arrived damaged: the same prefill worker sends it once more, from its prefix cache.
  void PushAgain(Request& request, const std::string& why, Instant now);
  // Counts a retry. False: there are none left and the request has ended.
  bool CountRetry(Request& request, RetryCause cause, const std::string& why,
                  std::optional<WorkerId> knows, Instant now);
  // The prefill worker is of no use for this request any more.
  void PrefillGone(Request& request, RetryCause cause, const std::string& why, Instant now);
  // The placement is void. `knows`: a worker that has dropped the request by itself.
  void PlacementGone(Request& request, RetryCause cause, const std::string& why,
                     std::optional<WorkerId> knows, Instant now);
  // An answer without a given length came to the end of its worker's KV cache: it goes on at a
  // worker that holds more, or ends. `knows`: as above.
  void WorkerFilled(Request& request, std::optional<WorkerId> knows, Instant now);
  // Of the first `placed_tokens` tokens, which may grow to `placed_tokens_max`.
  v1::Work MakeWork(const Request& request, AttemptId attempt, uint32_t placed_tokens,
                    uint32_t placed_tokens_max, Instant now) const;

  // Moves of running requests away from workers that drain (router_core_moves.cc).
  void SendDrain(WorkerId worker);
  void OnDraining(WorkerEntry& worker, std::string reason, Instant now);
  void StartMoves(Instant now);
  void StartMove(Request& request, WorkerId to, Instant now);
  void OnMoveAdmitted(Request& request, const v1::Admitted& admitted, Instant now);
  void OnMoveRejected(Request& request, WorkerId worker, const v1::Rejected& rejected, Instant now);
  void OnMigrated(WorkerId worker, const v1::Migrated& migrated, Instant now);
  void OnMigrateFailed(WorkerId worker, const v1::MigrateFailed& failed, Instant now);
  // The other worker has the request now.
  void CompleteMove(Request& request, std::optional<WorkerId> knows);
  // The move will not be; the request stays where it is.
  void DropMove(Request& request, std::optional<WorkerId> knows);
  void MoveFailed(Request& request, std::optional<WorkerId> knows, Instant now);
  // The request that is to move to `worker` under this attempt.
  Request* OwnedByMove(WorkerId worker, uint64_t attempt);

  // Events of workers (router_core_events.cc). Each drops what does not belong to a current
  // placement.
  void OnAdmitted(WorkerId worker, const v1::Admitted& admitted, Instant now);
  void OnRejected(WorkerId worker, const v1::Rejected& rejected, Instant now);
  // It has no room: it is left alone for a while.
  void PauseWorker(WorkerId worker, const v1::Rejected& rejected, Instant now);
  void OnFirstToken(WorkerId worker, const v1::FirstToken& first, Instant now);
  // So many tokens of the prompt were in a prefix cache.
  void NoteCached(Request& request, uint32_t cached_tokens);
  void OnPrefillDone(WorkerId worker, const v1::PrefillDone& done);
  void OnPrefillFailed(WorkerId worker, const v1::PrefillFailed& failed, Instant now);
  void OnTokens(WorkerId worker, const v1::Tokens& tokens, Instant now);
  void OnSequenceTokens(WorkerId worker, const v1::Tokens::Sequence& sequence, Instant now);
  void OnSequenceFinished(WorkerId worker, const v1::SequenceFinished& finished, Instant now);
  // `worker` says that the request has ended, and holds nothing of it any more.
  void EndAsTold(Request& request, WorkerId worker, v1::FinishReason reason, Instant now);
  void OnSequenceFailed(WorkerId worker, const v1::SequenceFailed& failed, Instant now);
  void OnAlreadyCommitted(WorkerId worker, const v1::AlreadyCommitted& committed);
  void OnLoad(WorkerId worker, const v1::Load& load);
  // The request whose placement has this attempt with `worker` as its D or P; null (and counted) if
  // none.
  Request* Owned(WorkerId worker, uint64_t attempt);
  Request* OwnedByDecode(WorkerId worker, uint64_t attempt);
  // As above; also the epoch must be the one that P was given.
  Request* OwnedByPrefill(WorkerId worker, uint64_t attempt, uint32_t epoch);

  const CoreOptions options_;
  WorkerTable workers_;
  PairTable pairs_;
  RequestTable requests_;
  AdmissionQueue queue_;
  ComputedShare computed_share_;
  CoreCounters counters_;
  std::vector<Action> actions_;
  bool draining_ = false;
  bool place_due_ = false;  // A request, a worker or a path may have become free since Place.
};

}  // namespace baton

#endif  // BATON_ROUTER_ROUTER_CORE_H_
