// The requests that the router has not ended yet, found by client request, by wire attempt and by
// deadline.
//
// Owned by RouterCore; one thread.
#ifndef BATON_ROUTER_REQUEST_TABLE_H_
#define BATON_ROUTER_REQUEST_TABLE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/deadline_index.h"
#include "common/base/ids.h"
#include "common/request/checked_request.h"
#include "proto/types.pb.h"
#include "proto/worker.pb.h"
#include "router/placement.h"
#include "router/worker_table.h"

namespace baton {

// What goes as `request` on the wire. Every placement of a request draws a new one, so whatever a
// worker still says about an earlier placement matches nothing.
enum class AttemptId : uint64_t {};

// A validated request as its shell hands it in.
struct NewRequest : CheckedRequest {
  RequestId id{};  // Unique; drawn by the shell.
  std::string client_request_id;
  Instant received{};
  Instant deadline = kNever;
};

enum class RequestState {
  kQueued,        // In AdmissionQueue; on no worker.
  kAdmitting,     // Admit is out; D has not answered.
  kPrefilling,    // P has Prefill; D, if one is needed, holds a lease for it.
  kLocalPrefill,  // D computes the prompt itself.
  kReopening,     // Reopen is out; D has not answered.
  kDecoding,      // D has committed.
};

// A decode worker that is to go on with a request which runs on another one.
struct MoveTarget {
  AttemptId attempt{};
  WorkerId to{};
  uint32_t placed_tokens = 0;        // How many of spec.tokens went with Admit.
  uint32_t placed_tokens_max = 0;    // What they may grow to there.
  std::optional<v1::Ticket> ticket;  // Absent: not admitted yet, or it computes them itself.
};

struct Request {
  NewRequest spec;            // spec.tokens grows: prompt and all tokens shown so far.
  uint64_t arrival = 0;       // Order of arrival.
  uint32_t given_tokens = 0;  // Generated tokens that came with the request.
  RequestState state = RequestState::kQueued;
  uint32_t retries = 0;
  uint32_t retries_in_row = 0;  // Without much progress between them.
  uint32_t index_at_retry = 0;  // Of the next token, when it was last moved.
  uint64_t unread_bytes = 0;    // Emitted and not yet written to the client.

  // The current placement.
  AttemptId attempt{};
  std::optional<WorkerId> decode;
  std::optional<WorkerId> prefill;   // Chosen; has Prefill only in kPrefilling.
  std::optional<v1::Ticket> ticket;  // Absent for local prefill and before Admitted.
  uint32_t placed_tokens = 0;        // How many of spec.tokens went with Admit.
  uint32_t placed_tokens_max = 0;    // What they may grow to there: spec's limit, or the worker's.
  uint64_t prefill_charge = 0;       // Part of WorkerEntry::prefill_tokens.
  std::optional<WorkerId> avoid;     // Failed it last.
  bool pushed_again = false;         // Its KV arrived damaged once.
  // The decode worker whose session broke: if it is the same process that comes back, it has most
  // of the KV in its prefix cache.
  std::optional<DecodeHome> home;
  Instant queued_since{};  // Since when it has been looking for a worker.
  Instant queued_at{};     // When it went into the queue last.
  bool in_queue = false;
  Instant asked_at{};  // When Admit or Reopen went out.
  std::optional<MoveTarget> move;
  uint32_t moves_failed = 0;           // Of the current placement.
  std::optional<WorkerId> move_avoid;  // The last move to it failed.
  Instant move_not_before{};

  std::optional<uint32_t> cached_tokens;  // Of the first prefill that reported.
  std::string prefill_address;            // Of the last workers, for the client.
  std::string decode_address;
  v1::StageTimings timings;
  std::optional<Instant> first_token_at;  // Of the tokens generated for this call.
  Instant last_token_at{};

  RequestId id() const { return spec.id; }
  // The index of the next token to show.
  uint32_t next_index() const {
    return static_cast<uint32_t>(spec.tokens.size()) - spec.prompt_tokens;
  }
  uint32_t tokens_left() const {
    return spec.total_tokens_max - static_cast<uint32_t>(spec.tokens.size());
  }
  // An answer without a given length has not ended, but its worker holds no more of it.
  bool fills_worker() const {
    return spec.open_ended && spec.tokens.size() >= placed_tokens_max &&
           !spec.end_reached().has_value();
  }
};

class RequestTable {
 public:
  // Null if there is none.
  Request* Find(RequestId id);
  Request* FindAttempt(AttemptId attempt);

  // REQUIRES: the id is new.
  Request& Insert(NewRequest spec);
  // REQUIRES: it exists and has no attempt.
  void Erase(RequestId id);

  // Gives the request a new attempt. REQUIRES: it has none.
  void StartAttempt(Request& request);
  void EndAttempt(Request& request);
  // A second attempt, beside the current one: that of request.move.
  AttemptId StartMove(Request& request);
  void EndMove(Request& request);
  // The second attempt takes the place of the first.
  void CompleteMove(Request& request);

  // Those whose deadline has come, in the order of their deadlines.
  std::vector<RequestId> Expired(Instant now) const { return deadlines_.Due(now); }

  // In order of id, that is of arrival at the shell.
  const std::map<RequestId, std::unique_ptr<Request>>& all() const { return requests_; }
  size_t size() const { return requests_.size(); }
  size_t attempt_count() const { return attempts_.size(); }

 private:
  std::map<RequestId, std::unique_ptr<Request>> requests_;
  std::map<AttemptId, Request*> attempts_;
  DeadlineIndex<RequestId> deadlines_;
  uint64_t next_arrival_ = 1;
  uint64_t next_attempt_ = 1;
};

}  // namespace baton

#endif  // BATON_ROUTER_REQUEST_TABLE_H_
