// Which workers a request goes to: the decode worker first, it must have room; then a prefill
// worker that reaches it and has little enough queued.
//
// Pure functions over the router's tables.
#ifndef BATON_ROUTER_PLACEMENT_H_
#define BATON_ROUTER_PLACEMENT_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "router/pair_table.h"
#include "router/worker_table.h"

namespace baton {

// A process that runs, or ran, a request.
struct DecodeHome {
  WorkerId worker{};
  Incarnation incarnation{};
};

struct PlacementNeed {
  uint32_t tokens = 0;            // To prefill.
  uint32_t total_tokens_max = 0;  // What the worker must be able to hold.
  bool first_token_only = false;  // One token is all that is wanted: no decode worker is needed.
  std::optional<WorkerId> avoid;  // It failed this request before: taken only if there is no other.
  std::optional<DecodeHome> home = std::nullopt;  // Taken first, if it can admit.
  uint64_t prefill_tokens = 0;  // Of `tokens`, how many will be computed, as far as one can tell.
  // A prefill worker that has work takes no more than so many in all.
  uint64_t prefill_tokens_max = 0;
};

// `prefill` absent: the decode worker computes the prompt. `decode` absent: only a first token is
// needed.
struct Placement {
  std::optional<WorkerId> decode;
  std::optional<WorkerId> prefill;
};

// Most tokens that this worker can ever hold; UINT32_MAX if it does not say.
uint32_t KvTokensMax(const WorkerEntry& worker);

// kInvalidArgument, with the numbers, if no worker is large enough, whether it is there or away:
// waiting would not help. One that has not connected yet may be.
absl::Status CheckFits(const WorkerTable& workers, const PlacementNeed& need);

// Whether workers that are ready could take the request if they had nothing else to do: if not, it
// waits for one that is away.
bool ReadyCouldTake(const WorkerTable& workers, const PlacementNeed& need);

// Nothing when the request has to wait.
std::optional<Placement> ChoosePlacement(const WorkerTable& workers, const PairTable& pairs,
                                         const PlacementNeed& need, Instant now);

// The prefill worker with the least queued tokens that reaches `decode` and holds `tokens`, however
// much it has queued: for a request that holds blocks on `decode` already.
std::optional<WorkerId> ChoosePrefill(const WorkerTable& workers, const PairTable& pairs,
                                      WorkerId decode, uint32_t tokens,
                                      std::optional<WorkerId> avoid, Instant now);

// A decode worker that can take over a request from `from`, which reaches it; nothing if none can
// now.
std::optional<WorkerId> ChooseNextHome(const WorkerTable& workers, const PairTable& pairs,
                                       WorkerId from, const PlacementNeed& need, Instant now);

// Blocks that `tokens` tokens take on this worker; 0 if the block size is unknown.
uint64_t BlocksFor(const WorkerEntry& worker, uint64_t tokens);

}  // namespace baton

#endif  // BATON_ROUTER_PLACEMENT_H_
