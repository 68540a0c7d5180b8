// The workers that the router knows: who is connected, who may be used and why not, and what this
// router has put on each.
//
// Owned by RouterCore; one thread.
#ifndef BATON_ROUTER_WORKER_TABLE_H_
#define BATON_ROUTER_WORKER_TABLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "proto/types.pb.h"
#include "proto/worker.pb.h"

namespace baton {

// The router's number for one worker address. Never reused.
enum class WorkerId : uint32_t {};

enum class WorkerState {
  kConnecting,  // No session yet.
  kReady,
  kDraining,  // Finishes what it has.
  kRefused,   // Connected, but it must not be used; WorkerEntry::reason says why.
  kLost,      // The session broke; its client tries again.
};

std::string WorkerStateName(WorkerState state);
// "prefill" or "decode".
std::string RoleName(v1::Role role);

struct WorkerEntry {
  WorkerId id{};
  std::string address;
  v1::Role role = v1::ROLE_UNSPECIFIED;
  WorkerState state = WorkerState::kConnecting;
  std::string reason;
  bool connected = false;  // A session is up, whether the worker is used or not.
  v1::WorkerHello hello;   // Of the current session, or of the last one.
  v1::WorkerLoad load;     // As last reported in this session.

  // What this router has put on the worker in this session.
  uint32_t attempts = 0;        // Placements not ended.
  uint64_t prefill_tokens = 0;  // To compute for first tokens that have not come back: estimated.
  uint64_t blocks_pledged =
      0;                  // Asked for since the last load report: an upper bound of what it lacks.
  bool draining = false;  // It said so, or was told to, whether it was in use or not.
  bool drained = false;   // Nothing was left on it, it said.
  Instant full_until{};   // It said RESOURCE_EXHAUSTED: not asked again before.

  // Which process was told to drain, in whatever session. What was told may have been lost with it.
  std::optional<Incarnation> told_to_drain;

  Incarnation incarnation() const { return static_cast<Incarnation>(hello.incarnation()); }
  // Its requests live: the session is up and the worker was accepted.
  bool serving() const { return state == WorkerState::kReady || state == WorkerState::kDraining; }
  bool ready() const { return state == WorkerState::kReady; }
};

// What a worker must be to be accepted.
struct ClusterPolicy {
  // Empty: the first worker that is accepted sets it, for as long as one with it is connected.
  std::string model_fingerprint = {};
  // Of the router's own model folder. 0 or empty: not checked.
  uint32_t vocab_size = 0;
  uint32_t context_tokens = 0;
  std::string architecture = {};
  bool mixed_numerics = false;  // Accept workers whose results may differ in the last bits.
};

class WorkerTable {
 public:
  explicit WorkerTable(ClusterPolicy policy) : policy_(std::move(policy)) {}

  WorkerId Add(std::string address, v1::Role role);
  // REQUIRES: the worker exists and nothing refers to it.
  void Remove(WorkerId id);

  // Null if there is none.
  WorkerEntry* Find(WorkerId id);
  const WorkerEntry* Find(WorkerId id) const;
  bool AnyReady(v1::Role role) const;

  // Takes the hello of a new session and decides: kReady, kDraining if this process was told to
  // drain, or kRefused with its reason.
  void Up(WorkerId id, const v1::WorkerHello& hello);
  // A session broke or could not be had. kFailedPrecondition: the worker refused this router.
  void Down(WorkerId id, const absl::Status& why);

  // Judges the connected workers that were refused once more, now that another one is gone.
  // Returns those that are no longer refused.
  std::vector<WorkerId> JudgeAgain();

  const std::map<WorkerId, WorkerEntry>& all() const { return workers_; }

 private:
  // Why `worker` cannot take part; OK if it can.
  absl::Status Judge(const WorkerEntry& worker, const v1::WorkerHello& hello) const;

  const ClusterPolicy policy_;
  std::map<WorkerId, WorkerEntry> workers_;
  uint32_t next_id_ = 1;
};

}  // namespace baton

#endif  // BATON_ROUTER_WORKER_TABLE_H_
