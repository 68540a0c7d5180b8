// Counters, gauges and histograms of one process, in Prometheus' form.
//
// A metric is named by the field's habits: baton_<what>_<unit>, _total for counters, seconds and
// bytes as units. It is created once at start and updated through the reference; updates are
// thread-safe and cheap (Counter and Gauge are atomics, Histogram takes a lock).
#ifndef BATON_COMMON_TELEMETRY_METRICS_H_
#define BATON_COMMON_TELEMETRY_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Exposer;
class Registry;
}  // namespace prometheus

namespace baton {

using Counter = prometheus::Counter;      // Increment(), Increment(double), Value()
using Gauge = prometheus::Gauge;          // Set(double), Increment(), Decrement(), Value()
using Histogram = prometheus::Histogram;  // Observe(double)
using MetricLabels = std::map<std::string, std::string>;

// Names that dashboards rely on.
inline constexpr char kRequestDurationSeconds[] = "baton_request_duration_seconds";
inline constexpr char kTimeToFirstTokenSeconds[] = "baton_time_to_first_token_seconds";
inline constexpr char kTimePerOutputTokenSeconds[] = "baton_time_per_output_token_seconds";
inline constexpr char kInterTokenLatencySeconds[] = "baton_inter_token_latency_seconds";
inline constexpr char kRequestsTotal[] = "baton_requests_total";  // {status}
inline constexpr char kRequestsRunning[] = "baton_requests_running";
inline constexpr char kRequestsQueued[] = "baton_requests_queued";
inline constexpr char kTokensTotal[] = "baton_tokens_total";  // {phase}
inline constexpr char kKvBlocks[] = "baton_kv_blocks";        // {state}
inline constexpr char kEngineStepSeconds[] = "baton_engine_step_seconds";
// What a handoff takes beyond the prefill that it overlaps: from the last layer to the commit.
inline constexpr char kHandoffSeconds[] = "baton_handoff_seconds";
inline constexpr char kHandoffBytesTotal[] = "baton_handoff_bytes_total";
inline constexpr char kFallbacksTotal[] = "baton_fallbacks_total";            // {reason}
inline constexpr char kPairBytesPerSecond[] = "baton_pair_bytes_per_second";  // {from, to}

// Whole requests and time to first token: 5 ms to 5 minutes.
std::vector<double> RequestSecondsBuckets();
// One engine step, one output token, one handoff: 0.25 ms to 10 s.
std::vector<double> StepSecondsBuckets();

class MetricsRegistry {
 public:
  MetricsRegistry();
  ~MetricsRegistry();
  MetricsRegistry(const MetricsRegistry&) = delete;
  MetricsRegistry& operator=(const MetricsRegistry&) = delete;

  // Return the metric of this name and these labels, made on the first call. It lives as long as
  // the registry. REQUIRES: name and labels are valid Prometheus names, and a name has one type.
  Counter& AddCounter(const std::string& name, const std::string& help,
                      const MetricLabels& labels = {});
  Gauge& AddGauge(const std::string& name, const std::string& help,
                  const MetricLabels& labels = {});
  // Takes it off the page; the reference is void then. REQUIRES: AddGauge made it under this name.
  void RemoveGauge(const std::string& name, Gauge& gauge);
  // `buckets`: ascending upper bounds.
  Histogram& AddHistogram(const std::string& name, const std::string& help,
                          const std::vector<double>& buckets, const MetricLabels& labels = {});

 private:
  friend class MetricsServer;
  const std::shared_ptr<prometheus::Registry> registry_;  // Shared with a server that reads it.
};

// Serves GET /metrics over HTTP until destroyed.
class MetricsServer {
 public:
  // `listen`: host:port; port 0 takes any free one. INVALID_ARGUMENT for a malformed address,
  // UNAVAILABLE when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& listen,
                                                              const MetricsRegistry& registry);
  // By the flag --metrics; null when it is empty. Logs the address.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> StartFromFlags(
      const MetricsRegistry& registry);
  ~MetricsServer();

  // host:port with the port that was bound.
  const std::string& address() const { return address_; }

 private:
  MetricsServer(std::unique_ptr<prometheus::Exposer> exposer, std::string address);

  std::unique_ptr<prometheus::Exposer> exposer_;
  const std::string address_;
};

}  // namespace baton

#endif  // BATON_COMMON_TELEMETRY_METRICS_H_
