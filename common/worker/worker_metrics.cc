#include "common/worker/worker_metrics.h"

#include <chrono>

namespace baton {
namespace {

Gauge& BlockGauge(MetricsRegistry* registry, const char* state) {
  return registry->AddGauge(kKvBlocks, "KV blocks by state", {{"state", state}});
}

Counter& TokenCounter(MetricsRegistry* registry, const char* phase) {
  return registry->AddCounter(kTokensTotal, "Tokens computed or found, by phase",
                              {{"phase", phase}});
}

Counter& StepCounter(MetricsRegistry* registry, const char* start) {
  return registry->AddCounter("baton_engine_steps_total",
                              "Engine steps, by whether they waited for the one before them",
                              {{"start", start}});
}

Counter& SequenceCounter(MetricsRegistry* registry, const char* end) {
  return registry->AddCounter("baton_sequences_total", "Sequences by what became of them",
                              {{"end", end}});
}

Counter& SwapCounter(MetricsRegistry* registry, const char* direction) {
  return registry->AddCounter("baton_kv_swaps_total",
                              "Preempted sequences whose KV went to the host's memory, and back",
                              {{"direction", direction}});
}

Counter& ByteCounter(MetricsRegistry* registry, const char* direction) {
  return registry->AddCounter(kHandoffBytesTotal, "KV bytes moved between workers",
                              {{"direction", direction}});
}

Counter& RefusedCounter(MetricsRegistry* registry, const char* reason) {
  return registry->AddCounter("baton_handoff_refused_total", "KV messages refused",
                              {{"reason", reason}});
}

Gauge& StagingGauge(MetricsRegistry* registry, const char* direction) {
  return registry->AddGauge("baton_handoff_staging_bytes",
                            "KV bytes in staging memory, on their way from or to a GPU",
                            {{"direction", direction}});
}

void CatchUp(Counter& counter, uint64_t total) {
  const double missing = static_cast<double>(total) - counter.Value();
  if (missing > 0) counter.Increment(missing);
}

}  // namespace

WorkerMetrics::WorkerMetrics(MetricsRegistry* registry)
    : step_seconds_(registry->AddHistogram(kEngineStepSeconds, "Time of one engine step",
                                           StepSecondsBuckets())),
      steps_waited_(StepCounter(registry, "waited")),
      steps_ahead_(StepCounter(registry, "ahead")),
      blocks_{.free = BlockGauge(registry, "free"),
              .cached = BlockGauge(registry, "cached"),
              .in_use = BlockGauge(registry, "in_use"),
              .receiving = BlockGauge(registry, "receiving"),
              .quarantined = BlockGauge(registry, "quarantined")},
      running_(registry->AddGauge(kRequestsRunning, "Sequences running")),
      waiting_(registry->AddGauge(kRequestsQueued, "Sequences admitted and not running yet")),
      queued_tokens_(registry->AddGauge("baton_tokens_queued", "Prompt tokens not computed yet")),
      prompt_tokens_(TokenCounter(registry, "prefill")),
      cached_tokens_(TokenCounter(registry, "cached")),
      decode_tokens_(TokenCounter(registry, "decode")),
      finished_(SequenceCounter(registry, "finished")),
      failed_(SequenceCounter(registry, "failed")),
      rejected_(SequenceCounter(registry, "rejected")),
      moved_(SequenceCounter(registry, "moved")),
      preempted_(registry->AddCounter("baton_preemptions_total",
                                      "Running sequences that gave up their KV blocks")),
      swapped_out_(SwapCounter(registry, "out")),
      swapped_in_(SwapCounter(registry, "in")),
      swap_blocks_used_(registry->AddGauge(
          "baton_kv_swap_blocks", "KV blocks in the host's memory, of preempted sequences")),
      bytes_sent_(ByteCounter(registry, "sent")),
      bytes_received_(ByteCounter(registry, "received")),
      refused_{.malformed = RefusedCounter(registry, "malformed"),
               .unknown_lease = RefusedCounter(registry, "unknown_lease"),
               .stale = RefusedCounter(registry, "stale"),
               .range = RefusedCounter(registry, "range"),
               .overlap = RefusedCounter(registry, "overlap"),
               .size = RefusedCounter(registry, "size")},
      checksum_mismatches_(registry->AddCounter("baton_handoff_checksum_mismatches_total",
                                                "KV messages whose bytes arrived damaged")),
      transfers_failed_(
          registry->AddCounter("baton_handoff_failed_total", "Transfers that failed")),
      force_closes_(registry->AddCounter("baton_handoff_force_closes_total",
                                         "Connections closed because KV transfers hung")),
      peers_lost_(registry->AddCounter("baton_handoff_peers_lost_total",
                                       "Connections to other workers that broke")),
      leases_open_(registry->AddGauge("baton_handoff_leases_open", "Leases that take KV")),
      transfers_open_(registry->AddGauge("baton_handoff_transfers_open", "KV transfers under way")),
      bytes_in_flight_(registry->AddGauge("baton_handoff_bytes_in_flight",
                                          "KV bytes sent and not acknowledged")),
      staging_sending_(StagingGauge(registry, "sent")),
      staging_receiving_(StagingGauge(registry, "received")) {}

void WorkerMetrics::ObserveStep(Duration duration) {
  step_seconds_.Observe(std::chrono::duration<double>(duration).count());
}

void WorkerMetrics::Update(const v1::WorkerLoad& load, const EngineStats& stats,
                           const TransferStats& transfer) {
  blocks_.free.Set(load.blocks_free());
  blocks_.cached.Set(load.blocks_cached());
  blocks_.in_use.Set(load.blocks_in_use());
  blocks_.receiving.Set(load.blocks_receiving());
  blocks_.quarantined.Set(load.blocks_quarantined());
  running_.Set(load.sequences_running());
  waiting_.Set(load.sequences_waiting());
  queued_tokens_.Set(static_cast<double>(load.tokens_queued()));
  CatchUp(steps_waited_, stats.steps - stats.steps_ahead);
  CatchUp(steps_ahead_, stats.steps_ahead);
  CatchUp(prompt_tokens_, stats.prompt_tokens);
  CatchUp(cached_tokens_, stats.cached_tokens);
  CatchUp(decode_tokens_, stats.decode_tokens);
  CatchUp(finished_, stats.finished);
  CatchUp(failed_, stats.failed);
  CatchUp(rejected_, stats.rejected);
  CatchUp(moved_, stats.moved);
  CatchUp(preempted_, stats.preempted);
  CatchUp(swapped_out_, stats.swapped_out);
  CatchUp(swapped_in_, stats.swapped_in);
  swap_blocks_used_.Set(load.swap_blocks_used());
  CatchUp(bytes_sent_, transfer.bytes_sent);
  CatchUp(bytes_received_, transfer.bytes_received);
  CatchUp(refused_.malformed, transfer.refused_malformed);
  CatchUp(refused_.unknown_lease, transfer.refused_unknown_lease);
  CatchUp(refused_.stale, transfer.refused_stale);
  CatchUp(refused_.range, transfer.refused_range);
  CatchUp(refused_.overlap, transfer.refused_overlap);
  CatchUp(refused_.size, transfer.refused_size);
  CatchUp(checksum_mismatches_, transfer.checksum_mismatches);
  CatchUp(transfers_failed_, transfer.transfers_failed + transfer.leases_failed);
  CatchUp(force_closes_, transfer.force_closes);
  CatchUp(peers_lost_, transfer.peers_lost);
  leases_open_.Set(transfer.leases_open);
  transfers_open_.Set(transfer.transfers_open);
  bytes_in_flight_.Set(static_cast<double>(transfer.bytes_in_flight));
  staging_sending_.Set(static_cast<double>(transfer.staging_bytes_sending));
  staging_receiving_.Set(static_cast<double>(transfer.staging_bytes_receiving));
}

}  // namespace baton
