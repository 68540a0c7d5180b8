// What a seed makes of the world: the cluster, the load, and which faults strike how often.
//
// Each seed takes some kinds of faults only ("swarm testing": Groce et al., ISSTA 2012): a run in
// which everything breaks at once seldom gets far enough to break in an interesting way.
#ifndef BATON_TESTS_SIMULATION_FAULT_PLAN_H_
#define BATON_TESTS_SIMULATION_FAULT_PLAN_H_

#include <algorithm>
#include <cstdint>

#include "common/base/clock.h"
#include "tests/simulation/dice.h"

namespace baton {

struct FaultPlan {
  uint32_t prefill_workers = 1;
  uint32_t decode_workers = 1;
  uint32_t prefill_blocks = 64;
  uint32_t decode_blocks = 64;
  uint32_t small_decode_blocks = 0;  // Of all decode workers but the first; 0: as that.
  uint32_t swap_blocks = 0;          // Of each decode worker.
  uint32_t local_prefill_tokens_max = 0;
  uint32_t chunk_tokens = 16;
  Duration step_max = std::chrono::milliseconds(5);  // Of an engine.
  uint32_t window = 0;                               // Of the model's attention; 0: none.
  bool local_prefill = true;                         // Of decode workers, when the router asks.
  bool colocated = false;        // Decode workers always compute prompts themselves.
  bool started_steps = false;    // Decode workers start steps before the one before has ended.
  bool late_workers = false;     // Some join while requests are running.
  size_t message_bytes_max = 0;  // Of a KV message; 0: one layer of one block.

  uint32_t requests = 10;
  double open_ended = 0;                        // Of requests: no length is given.
  Duration arrivals = std::chrono::seconds(1);  // All within.
  double cancelled = 0;                         // Of requests.
  double with_deadline = 0;
  bool slow_clients = false;
  uint32_t retries_max = 3;

  // Events a second over the whole cluster while faults last and something goes on; a fifth of that
  // while nothing does.
  double crashes = 0;  // Of a worker; another life begins some time later.
  double session_breaks = 0;
  double session_cuts = 0;   // Neither side hears the other for a while.
  double pair_cuts = 0;      // No KV gets through between two workers for a while.
  double pauses = 0;         // SIGSTOP, SIGCONT.
  double drains = 0;         // SIGTERM: what runs may finish, then the worker goes.
  double engine_errors = 0;  // A forward pass fails.
  double router_crashes = 0;
  Duration faults_last = std::chrono::seconds(3);

  // Of KV messages.
  double late = 0;
  double never = 0;    // Hangs until its connection ends.
  double broken = 0;   // Breaks its connection.
  double corrupt = 0;  // Arrives with a wrong byte.

  // Of the decode worker at this place.
  uint32_t DecodeBlocks(uint32_t place) const {
    return place == 0 || small_decode_blocks == 0 ? decode_blocks : small_decode_blocks;
  }
  // No fault may end a request: only its client and its deadline do.
  bool unlimited_retries() const { return retries_max > 1000; }
};

// `rare` decides what most seeds have nothing of, and `steps` how workers step: so the plans of
// known seeds stay what they are.
inline FaultPlan DrawPlan(Dice& dice, Dice& rare, Dice steps) {
  FaultPlan plan;
  plan.prefill_workers = dice.Below(4);
  plan.decode_workers = dice.Between(1, 3);
  // Enough for the largest request and all its tokens, sometimes for hardly more.
  plan.prefill_blocks = dice.Chance(0.3) ? dice.Between(23, 30) : 96;
  plan.decode_blocks = dice.Chance(0.3) ? dice.Between(23, 34) : 128;
  plan.chunk_tokens = dice.Chance(0.5) ? dice.Between(3, 12) : 64;
  plan.step_max = std::chrono::milliseconds(dice.Chance(0.4) ? 25 : 5);
  plan.window = dice.Chance(0.2) ? dice.Between(3, 20) : 0;
  plan.colocated = dice.Chance(0.1);
  plan.local_prefill = plan.colocated || plan.prefill_workers == 0 || dice.Chance(0.5);
  plan.late_workers = dice.Chance(0.2);
  plan.message_bytes_max = dice.Chance(0.5) ? 0 : 1u << 20;

  plan.requests = dice.Between(1, 16);
  plan.arrivals = dice.Between(std::chrono::milliseconds(1), std::chrono::seconds(2));
  if (dice.Chance(0.4)) plan.cancelled = 0.3;
  if (dice.Chance(0.4)) plan.with_deadline = 0.4;
  plan.slow_clients = dice.Chance(0.1);
  plan.retries_max = dice.Chance(0.7) ? 1u << 30 : dice.Below(4);

  const auto rate = [&dice](double probability, double most) {
    return dice.Chance(probability) ? most * (1 + dice.Below(4)) / 4 : 0.0;
  };
  plan.crashes = rate(0.4, 8);
  plan.session_breaks = rate(0.4, 10);
  plan.session_cuts = rate(0.25, 4);
  plan.pair_cuts = rate(0.3, 8);
  plan.pauses = rate(0.3, 5);
  plan.drains = rate(0.25, 4);
  plan.engine_errors = rate(0.15, 6);
  plan.router_crashes = rate(0.1, 2);
  plan.late = rate(0.5, 1);
  plan.never = rate(0.15, 0.02);
  plan.broken = rate(0.2, 0.02);
  plan.corrupt = rate(0.15, 0.04);

  // Sequences move only from a decode worker that runs some to another one that has room: rare, if
  // left to chance.
  if (dice.Chance(0.15)) {
    plan.decode_workers = 3;
    plan.drains = 8;
    plan.window = 0;
    plan.step_max = std::chrono::milliseconds(25);
    plan.requests = dice.Between(8, 16);
    plan.arrivals = std::chrono::milliseconds(300);
  }
  plan.swap_blocks = dice.Chance(0.5) ? 0 : dice.Between(4, 64);
  plan.local_prefill_tokens_max = dice.Chance(0.5) ? 0 : dice.Between(1, 20);

  plan.started_steps = steps.Chance(0.5);

  if (rare.Chance(0.15)) {
    plan.open_ended = 0.5;
    // Whatever has grown on a decode worker a prefill worker can compute again.
    plan.prefill_blocks = std::max(plan.prefill_blocks, 32u);
    if (rare.Chance(0.7)) plan.small_decode_blocks = rare.Between(14, 24);
  }
  return plan;
}

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_FAULT_PLAN_H_
