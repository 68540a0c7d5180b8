#include "router/router_metrics.h"

#include <string>

namespace baton {
namespace {

constexpr WorkerState kStates[] = {WorkerState::kConnecting, WorkerState::kReady,
                                   WorkerState::kDraining, WorkerState::kRefused,
                                   WorkerState::kLost};

// Statuses that a request may end with.
constexpr absl::StatusCode kRequestEnds[] = {
    absl::StatusCode::kOk,          absl::StatusCode::kInvalidArgument,
    absl::StatusCode::kCancelled,   absl::StatusCode::kDeadlineExceeded,
    absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted,
    absl::StatusCode::kAborted,     absl::StatusCode::kUnimplemented,
    absl::StatusCode::kInternal};

constexpr double kMillisecondsPerSecond = 1000.0;

}  // namespace

RouterMetrics::RouterMetrics(MetricsRegistry* registry)
    : registry_(registry),
      duration_(registry->AddHistogram(kRequestDurationSeconds, "Time from call to end of stream.",
                                       RequestSecondsBuckets())),
      first_token_(registry->AddHistogram(
          kTimeToFirstTokenSeconds, "Time from call to the first token.", RequestSecondsBuckets())),
      output_token_(registry->AddHistogram(kTimePerOutputTokenSeconds,
                                           "Mean time per token after the first, per request.",
                                           StepSecondsBuckets())),
      inter_token_(registry->AddHistogram(kInterTokenLatencySeconds,
                                          "Time between two messages with tokens of one stream.",
                                          StepSecondsBuckets())),
      handoff_(registry->AddHistogram(
          kHandoffSeconds, "Time from the prompt's last layer to the acknowledged commit.",
          StepSecondsBuckets())),
      queued_(registry->AddGauge(kRequestsQueued, "Requests that wait for a worker.")),
      queued_tokens_(registry->AddGauge("baton_tokens_queued", "Tokens of waiting requests.")),
      running_(registry->AddGauge(kRequestsRunning, "Requests that are on a worker.")),
      prompt_tokens_(registry->AddCounter(kTokensTotal, "Tokens by phase.", {{"phase", "prompt"}})),
      cached_tokens_(registry->AddCounter(kTokensTotal, "Tokens by phase.", {{"phase", "cached"}})),
      generated_tokens_(
          registry->AddCounter(kTokensTotal, "Tokens by phase.", {{"phase", "generated"}})),
      local_prefills_(registry->AddCounter(kFallbacksTotal, "Second-best ways that were taken.",
                                           {{"reason", "local_prefill"}})),
      no_room_(registry->AddCounter("baton_placements_refused_total",
                                    "Placements that a worker refused for lack of room.")),
      moves_(registry->AddCounter("baton_moves_total",
                                  "Running requests that went on at another decode worker.",
                                  {{"result", "done"}})),
      moves_failed_(registry->AddCounter("baton_moves_total",
                                         "Running requests that went on at another decode worker.",
                                         {{"result", "failed"}})),
      stale_events_(registry->AddCounter("baton_stale_events_total",
                                         "Worker events that matched no current placement.")) {
  for (const v1::Role role : {v1::ROLE_PREFILL, v1::ROLE_DECODE}) {
    for (const WorkerState state : kStates) {
      workers_[{role, state}] =
          &registry->AddGauge("baton_workers", "Workers by role and state.",
                              {{"role", RoleName(role)}, {"state", WorkerStateName(state)}});
    }
  }
  // A series that begins with its first count has no increase there.
  for (const absl::StatusCode code : kRequestEnds) RequestCounter(code);
  for (size_t i = 0; i < kRetryCauseCount; ++i) RetryCounter(static_cast<RetryCause>(i));
}

Counter& RouterMetrics::RequestCounter(absl::StatusCode code) {
  return registry_->AddCounter(kRequestsTotal, "Requests by the status they ended with.",
                               {{"status", absl::StatusCodeToString(code)}});
}

Counter& RouterMetrics::RetryCounter(RetryCause cause) {
  return registry_->AddCounter("baton_retries_total", "Requests that were moved, by cause.",
                               {{"cause", RetryCauseName(cause)}});
}

void RouterMetrics::CountRequest(const absl::Status& status) {
  RequestCounter(status.code()).Increment();
}

void RouterMetrics::CountKey(const absl::StatusOr<std::string>& name) {
  if (name.ok()) {
    registry_
        ->AddCounter("baton_calls_total", "Calls by the name of their API key.", {{"key", *name}})
        .Increment();
  } else {
    registry_
        ->AddCounter("baton_calls_refused_total",
                     "Calls refused for a missing or insufficient API key, by status.",
                     {{"status", absl::StatusCodeToString(name.status().code())}})
        .Increment();
  }
}

void RouterMetrics::OnEmit(const Emit& emit) {
  if (!emit.pause.has_value()) return;
  inter_token_.Observe(ToMilliseconds(*emit.pause) / kMillisecondsPerSecond);
}

void RouterMetrics::OnFinish(const Finish& finish) {
  CountRequest(finish.status);
  const v1::StageTimings& timings = finish.finished.timings();
  const v1::Usage& usage = finish.finished.usage();
  duration_.Observe(timings.total_ms() / kMillisecondsPerSecond);
  generated_tokens_.Increment(usage.generated_tokens());
  if (usage.generated_tokens() == 0) return;
  prompt_tokens_.Increment(usage.prompt_tokens());
  cached_tokens_.Increment(usage.cached_tokens());
  first_token_.Observe(timings.first_token_ms() / kMillisecondsPerSecond);
  // Local prefills have none.
  if (timings.transfer_tail_ms() > 0) {
    handoff_.Observe(timings.transfer_tail_ms() / kMillisecondsPerSecond);
  }
  if (usage.generated_tokens() > 1) {
    output_token_.Observe(timings.decode_ms() / kMillisecondsPerSecond /
                          (usage.generated_tokens() - 1));
  }
}

void RouterMetrics::Update(const RouterCore& core) {
  queued_.Set(core.queued_count());
  queued_tokens_.Set(static_cast<double>(core.queued_tokens()));
  running_.Set(static_cast<double>(core.request_count() - core.queued_count()));
  std::map<std::pair<v1::Role, WorkerState>, int> counts;
  for (const auto& [id, worker] : core.workers().all()) ++counts[{worker.role, worker.state}];
  for (const auto& [key, gauge] : workers_) gauge->Set(counts[key]);
  UpdatePairs(core);
  const CoreCounters& now = core.counters();
  for (size_t i = 0; i < kRetryCauseCount; ++i) {
    if (now.retries[i] == seen_.retries[i]) continue;
    RetryCounter(static_cast<RetryCause>(i))
        .Increment(static_cast<double>(now.retries[i] - seen_.retries[i]));
  }
  local_prefills_.Increment(static_cast<double>(now.local_prefills - seen_.local_prefills));
  no_room_.Increment(static_cast<double>(now.no_room - seen_.no_room));
  moves_.Increment(static_cast<double>(now.moves - seen_.moves));
  moves_failed_.Increment(static_cast<double>(now.moves_failed - seen_.moves_failed));
  stale_events_.Increment(static_cast<double>(now.stale_events - seen_.stale_events));
  seen_ = now;
}

void RouterMetrics::UpdatePairs(const RouterCore& core) {
  const std::map<PairTable::Key, Pair>& known = core.pairs().all();
  std::erase_if(pairs_, [&](const auto& item) {
    if (known.contains(item.first)) return false;
    registry_->RemoveGauge(kPairBytesPerSecond, *item.second);
    return true;
  });
  for (const auto& [key, pair] : known) {
    const bool healthy = pair.state == PairState::kHealthy;
    if (!healthy && pair.failures == 0) continue;  // Nothing is known about it yet.
    Gauge*& gauge = pairs_[key];
    if (gauge == nullptr) {
      gauge = &registry_->AddGauge(kPairBytesPerSecond,
                                   "What the last probe of the way from one worker to another "
                                   "measured; 0: nothing gets through.",
                                   {{"from", core.workers().Find(key.first)->address},
                                    {"to", core.workers().Find(key.second)->address}});
    }
    gauge->Set(healthy ? pair.bytes_per_second : 0);
  }
}

}  // namespace baton
