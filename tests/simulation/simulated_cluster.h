// A whole cluster in one thread, with a clock that is only a number: the router's core, workers
// with their engines, sessions, KV transfers and clients, and the faults of a plan.
//
// A session delivers an in-order prefix of what was sent and then breaks; each side hears of that
// in its own time. KV messages fare as SimulatedDelivery says. What must hold at any moment is
// checked as it runs, and what must hold at rest at its end.
#ifndef BATON_TESTS_SIMULATION_SIMULATED_CLUSTER_H_
#define BATON_TESTS_SIMULATION_SIMULATED_CLUSTER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/transport/testing/inproc_transport.h"
#include "router/router_core.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/fault_plan.h"
#include "tests/simulation/record.h"
#include "tests/simulation/simulated_client.h"
#include "tests/simulation/simulated_network.h"
#include "tests/simulation/simulated_worker.h"

namespace baton {

// What happened in a run: a simulation in which nothing happens finds nothing.
struct Happened {
  uint64_t requests = 0;
  uint64_t completed = 0;
  uint64_t retries = 0;
  uint64_t moves = 0;
  uint64_t moves_failed = 0;
  uint64_t crashes = 0;
  uint64_t sessions_broken = 0;
  uint64_t pauses = 0;
  uint64_t drains = 0;
  uint64_t router_crashes = 0;
  uint64_t transfers_acked = 0;
  uint64_t transfers_failed = 0;
  uint64_t force_closes = 0;
  uint64_t checksum_mismatches = 0;
  uint64_t messages_refused = 0;
  uint64_t preempted = 0;
  uint64_t swapped = 0;  // Came back with their KV.
  uint64_t steps_ahead = 0;

  void Add(const Happened& other);
  std::string ToString() const;
};

class SimulatedCluster {
 public:
  // `record` outlives the cluster.
  SimulatedCluster(uint64_t seed, Record& record);
  ~SimulatedCluster();

  // To the end: every client has its answer and everybody is at rest, or a rule was violated.
  Happened Run();

 private:
  template <typename Message>
  struct Timed {
    Instant due;
    Message message;
  };
  // One worker's place in the cluster: its current life, and the session to it.
  struct Place {
    std::string name;
    v1::Role role = v1::ROLE_UNSPECIFIED;
    uint32_t blocks = 0;
    WorkerId id{};                            // At the current router.
    std::unique_ptr<SimulatedWorker> worker;  // Null while it is dead.
    Instant starts_at{};                      // Of the next life, when dead.
    Instant paused_until{};
    Instant gone_by = kNever;     // Draining: it goes at the latest then.
    Incarnation told_to_drain{};  // Which life, by the current router.
    Instant engine_ready{};       // The current step takes that long.

    // The session. It is up at the router, at the worker, or both.
    bool router_up = false;
    bool worker_up = false;
    bool breaking = false;
    Incarnation router{};  // That the worker's side belongs to.
    Instant router_hears = kNever;
    Instant worker_hears = kNever;
    Instant connects_at{};
    Instant cut_until{};
    std::deque<Timed<v1::Command>> commands;
    std::deque<Timed<v1::Event>> events;
    // Sessions of routers that have died, of which the worker has not heard yet.
    std::vector<Timed<Incarnation>> orphans;
  };

  void StartRouter();
  void StartWorker(Place& place);
  void Kill(Place& place, Duration back_after);
  void Connect(Place& place);
  // The session is over; both sides learn it within these times.
  void Break(Place& place, Duration router_hears, Duration worker_hears);

  bool Tick();
  bool MoveSessions(Place& place);
  bool RunWorker(Place& place);
  bool Perform();
  void PerformSend(SendCommand send);
  void PerformEmit(const Emit& emit);
  void PerformFinish(const Finish& finish);
  bool RunClients();
  void Strike();
  void StrikeWorker(Place& place);
  void Drain(Place& place);
  void CrashRouter();
  void CheckNow();
  void CheckAtRest();
  Happened Total();
  void CollectRouter();
  void Collect(const SimulatedWorker& worker);

  Place* Find(WorkerId id);
  bool Alive(const Place& place) const {
    return place.worker != nullptr && place.paused_until <= now_;
  }
  Duration Latency() { return dice_.Between(std::chrono::microseconds(50), latency_max_); }

  Dice dice_;
  Record& record_;
  Dice rare_;  // Apart: what it decides for a few seeds leaves the others as they were.
  const FaultPlan plan_;
  Instant now_{std::chrono::seconds(1000)};
  const Instant start_ = now_;
  bool faults_ = true;
  Duration latency_max_;
  SimulatedDelivery* delivery_;  // Owned by the network.
  InprocNetwork network_;
  std::unique_ptr<RouterCore> router_;
  Incarnation router_incarnation_{};
  std::vector<Place> places_;
  std::vector<SimulatedClient> clients_;
  std::map<RequestId, SimulatedClient*> calls_;
  uint64_t next_incarnation_ = 1;
  uint64_t next_request_ = 1;
  Instant next_router_tick_{};
  Instant next_load_{};
  Happened happened_;
};

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_SIMULATED_CLUSTER_H_
