// The router's Prometheus metrics.
//
// Written by the router's thread, but for CountRequest.
#ifndef BATON_ROUTER_ROUTER_METRICS_H_
#define BATON_ROUTER_ROUTER_METRICS_H_

#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/telemetry/metrics.h"
#include "router/actions.h"
#include "router/router_core.h"

namespace baton {

class RouterMetrics {
 public:
  // `registry` outlives this.
  explicit RouterMetrics(MetricsRegistry* registry);

  // A request has ended, or was refused before it reached the core. Any thread.
  void CountRequest(const absl::Status& status);
  // A call was let in under the name of its API key, or refused. Any thread.
  void CountKey(const absl::StatusOr<std::string>& name);
  // A message is on its way to the client.
  void OnEmit(const Emit& emit);
  // A request has ended; counts it too.
  void OnFinish(const Finish& finish);
  // Brings gauges and counters up to the core's state.
  void Update(const RouterCore& core);

 private:
  Counter& RequestCounter(absl::StatusCode code);
  Counter& RetryCounter(RetryCause cause);
  void UpdatePairs(const RouterCore& core);

  MetricsRegistry* const registry_;
  Histogram& duration_;
  Histogram& first_token_;
  Histogram& output_token_;
  Histogram& inter_token_;
  Histogram& handoff_;
  Gauge& queued_;
  Gauge& queued_tokens_;
  Gauge& running_;
  Counter& prompt_tokens_;
  Counter& cached_tokens_;
  Counter& generated_tokens_;
  Counter& local_prefills_;
  Counter& no_room_;
  Counter& moves_;
  Counter& moves_failed_;
  Counter& stale_events_;
  std::map<std::pair<v1::Role, WorkerState>, Gauge*> workers_;
  std::map<PairTable::Key, Gauge*> pairs_;
  CoreCounters seen_;  // What the counters include already.
};

}  // namespace baton

#endif  // BATON_ROUTER_ROUTER_METRICS_H_
