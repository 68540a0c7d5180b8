// The health of every (prefill worker, decode worker) pair: whether KV gets from one to the other.
// A pair is probed before its first use and after a failure; only healthy pairs are used. A decode
// worker that drains counts as a prefill worker, too: its sequences are to move on to the others.
//
// Owned by RouterCore; one thread.
#ifndef BATON_ROUTER_PAIR_TABLE_H_
#define BATON_ROUTER_PAIR_TABLE_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "router/worker_table.h"

namespace baton {

enum class PairState { kUnknown, kProbing, kHealthy, kDown };

struct PairOptions {
  // Of one worker at once, from it or to it: a path that swallows probes holds up its own worker's,
  // and nobody else's.
  uint32_t probes_per_worker_max = 4;
  Duration probe_timeout = std::chrono::seconds(5);
  Duration backoff_min = std::chrono::milliseconds(250);
  Duration backoff_max = std::chrono::seconds(15);
};

struct Pair {
  PairState state = PairState::kUnknown;
  uint32_t failures = 0;  // In a row.
  Instant next{};         // kDown: when to probe again. kProbing: when to give up.
  uint64_t probe = 0;     // The probe in flight.
  std::string reason;     // Why it is down.
  double bytes_per_second = 0;
};

class PairTable {
 public:
  struct ProbeOrder {
    uint64_t probe = 0;
    WorkerId prefill{};
    WorkerId decode{};
  };

  explicit PairTable(PairOptions options) : options_(options) {}

  PairState state(WorkerId prefill, WorkerId decode) const;
  // Its last transfer or probe failed; it may be being probed again.
  bool broken(WorkerId prefill, WorkerId decode) const;

  // A session of this worker began or ended: what was known about its pairs is void.
  void Forget(WorkerId worker);

  // A transfer went through.
  void Succeeded(WorkerId prefill, WorkerId decode);
  // A transfer failed: down, with backoff.
  void Failed(WorkerId prefill, WorkerId decode, const std::string& why, Instant now);

  // The answer to a probe; one that is not in flight is ignored.
  void ProbeAnswered(WorkerId prefill, uint64_t probe, bool ok, const std::string& why,
                     double bytes_per_second, Instant now);

  // Until then there is nothing for Due() to give, unless workers come, go or begin to drain.
  Instant next_due() const { return next_due_; }
  // The probes to send now among ready workers, a few of each at a time; they count as in flight
  // from here on. Pairs that were never probed go first, then those that have been due for longest.
  // Gives up those whose time is over.
  std::vector<ProbeOrder> Due(const WorkerTable& workers, Instant now);

  using Key = std::pair<WorkerId, WorkerId>;  // Prefill, decode.
  const std::map<Key, Pair>& all() const { return pairs_; }

 private:
  using Load = std::map<WorkerId, uint32_t>;  // Probes in flight, from and to.

  // The state of a pair changes from this one: a place for another probe may be free.
  void LeaveState(PairState state);
  // Gives up what is late. What remains in flight, by worker.
  Load InFlight(Instant now);
  // Pairs of ready workers that may be probed now, the most urgent first.
  std::vector<Key> Waiting(const WorkerTable& workers, Instant now);

  const PairOptions options_;
  std::map<Key, Pair> pairs_;
  uint64_t next_probe_ = 1;
  Instant next_due_ = Instant::min();
};

}  // namespace baton

#endif  // BATON_ROUTER_PAIR_TABLE_H_
