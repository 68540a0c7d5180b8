// A worker's Prometheus metrics, fed by the engine thread.
#ifndef BATON_COMMON_WORKER_WORKER_METRICS_H_
#define BATON_COMMON_WORKER_WORKER_METRICS_H_

#include "common/base/clock.h"
#include "common/engine/worker_engine.h"
#include "common/kv_transfer/transfer_agent.h"
#include "common/telemetry/metrics.h"
#include "proto/types.pb.h"

namespace baton {

class WorkerMetrics {
 public:
  // `registry` outlives it.
  explicit WorkerMetrics(MetricsRegistry* registry);

  void ObserveStep(Duration duration);
  // Totals only grow; the metrics take the difference to the last call.
  void Update(const v1::WorkerLoad& load, const EngineStats& stats, const TransferStats& transfer);

 private:
  struct Blocks {
    Gauge& free;
    Gauge& cached;
    Gauge& in_use;
    Gauge& receiving;
    Gauge& quarantined;
  };

  Histogram& step_seconds_;
  Counter& steps_waited_;
  Counter& steps_ahead_;
  Blocks blocks_;
  Gauge& running_;
  Gauge& waiting_;
  Gauge& queued_tokens_;
  Counter& prompt_tokens_;
  Counter& cached_tokens_;
  Counter& decode_tokens_;
  Counter& finished_;
  Counter& failed_;
  Counter& rejected_;
  Counter& moved_;
  Counter& preempted_;
  Counter& swapped_out_;
  Counter& swapped_in_;
  Gauge& swap_blocks_used_;
  Counter& bytes_sent_;
  Counter& bytes_received_;
  struct {
    Counter& malformed;
    Counter& unknown_lease;
    Counter& stale;
    Counter& range;
    Counter& overlap;
    Counter& size;
  } refused_;
  Counter& checksum_mismatches_;
  Counter& transfers_failed_;
  Counter& force_closes_;
  Counter& peers_lost_;
  Gauge& leases_open_;
  Gauge& transfers_open_;
  Gauge& bytes_in_flight_;
  Gauge& staging_sending_;
  Gauge& staging_receiving_;
};

}  // namespace baton

#endif  // BATON_COMMON_WORKER_WORKER_METRICS_H_
