// chaos: a cluster of real processes under load, whose workers are killed, drained and stopped at
// random; what its clients get must be what they would have got anyway.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/model/testing/tiny_model.h"
#include "tests/load/chaos_faults.h"
#include "tests/load/chaos_streams.h"
#include "tests/support/process_usage.h"

ABSL_FLAG(double, minutes, 2, "How long faults last.");
ABSL_FLAG(uint64_t, seed, 1, "Of requests and faults. What happens when is not repeatable.");
ABSL_FLAG(int32_t, streams, 16, "Requests at once.");
ABSL_FLAG(int32_t, prefill, 2, "Prefill workers.");
ABSL_FLAG(int32_t, decode, 2, "Decode workers.");
ABSL_FLAG(double, fault_seconds, 5, "A fault about so often.");
ABSL_FLAG(int32_t, requests, 64, "Different requests to draw from.");
ABSL_FLAG(uint32_t, tokens, 1500, "Most tokens of an answer; at most 1700.");
ABSL_FLAG(uint32_t, retries, 3, "The router's --retries.");
ABSL_FLAG(std::string, json, "", "Write the figures here, too.");

namespace baton {
namespace {

constexpr Duration kRecovery = std::chrono::minutes(1);
// Longer than gRPC holds on to a connection that a stopped process has not answered.
constexpr Duration kSettling = std::chrono::seconds(40);

using Json = nlohmann::ordered_json;

void Pause(Duration duration) {
  absl::Notification().WaitForNotificationWithTimeout(absl::FromChrono(duration));
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto rank = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

// What the router held over the run: the only process that lives through all of it.
class RouterWatch {
 public:
  void Look(pid_t pid) { usages_.push_back(UsageOf(pid)); }
  // Least-squares growth over the second half, for what does not depend on when it is looked at.
  double MemoryGrowthKib() const {
    const size_t half = usages_.size() / 2;
    const auto count = static_cast<double>(usages_.size() - half);
    if (count < 2) return 0;
    double sum = 0, weighted = 0;
    for (size_t i = half; i < usages_.size(); ++i) {
      const double x = static_cast<double>(i - half) - (count - 1) / 2;
      sum += x * static_cast<double>(usages_[i].memory_kib);
      weighted += x * x;
    }
    return sum / weighted * count;
  }
  // Waits until it holds as many files as at first, but not for ever.
  void Settle(pid_t pid) {
    const Instant deadline = Now() + kSettling;
    do {
      Pause(std::chrono::seconds(1));
      at_rest_ = UsageOf(pid);
    } while (at_rest_.files > usages_.front().files && Now() < deadline);
  }
  Json ToJson() const {
    const ProcessUsage& middle = usages_[usages_.size() / 2];
    const ProcessUsage& last = usages_.back();
    return {{"memory_mib_first", static_cast<double>(usages_.front().memory_kib) / 1024},
            {"memory_mib_half", static_cast<double>(middle.memory_kib) / 1024},
            {"memory_mib_last", static_cast<double>(last.memory_kib) / 1024},
            {"memory_mib_growth_second_half", MemoryGrowthKib() / 1024},
            {"files_first", usages_.front().files},
            {"files_half", middle.files},
            {"files_last", last.files},
            {"files_at_rest", at_rest_.files},
            {"threads_first", usages_.front().threads},
            {"threads_half", middle.threads},
            {"threads_last", last.threads},
            {"threads_at_rest", at_rest_.threads}};
  }

 private:
  ProcessUsage at_rest_;
  std::vector<ProcessUsage> usages_;
};

uint64_t LeakedBlocks(const v1::GetClusterResponse& status) {
  uint64_t leaked = 0;
  for (const v1::WorkerStatus& worker : status.workers()) {
    const v1::WorkerLoad& load = worker.load();
    leaked += load.blocks_total() - load.blocks_free() - load.blocks_cached();
  }
  return leaked;
}

struct Result {
  StreamCounts streams;
  Json report;
  bool at_rest = false;
  bool good() const { return streams.differ == 0 && streams.failed == 0 && at_rest; }
};

Json Pauses(const std::vector<double>& pauses_ms) {
  return {{"p50", Percentile(pauses_ms, 0.5)},
          {"p90", Percentile(pauses_ms, 0.9)},
          {"p99", Percentile(pauses_ms, 0.99)},
          {"max", Percentile(pauses_ms, 1)}};
}

Json Report(const StreamCounts& streams, const ChaosFaults& faults) {
  Json by_kind;
  for (size_t i = 0; i < kFaultCount; ++i) {
    by_kind[FaultName(static_cast<Fault>(i))] = faults.counts()[i];
  }
  return {{"requests", streams.requests},
          {"completed", streams.completed},
          {"differ", streams.differ},
          {"failed", streams.failed},
          {"cancelled_by_clients", streams.cancelled},
          {"refused_before_admission", streams.refused},
          {"completed_after_retries", streams.retried},
          {"retries", streams.retries},
          {"tokens", streams.tokens},
          {"faults", by_kind},
          {"longest_pause_ms", Pauses(streams.pauses_ms)},
          {"longest_pause_ms_of_retried", Pauses(streams.retried_pauses_ms)}};
}

absl::StatusOr<Result> RunChaos() {
  const uint64_t seed = absl::GetFlag(FLAGS_seed);
  const TemporaryFolder model;
  TinyModelOptions tiny;
  tiny.layers = 3;
  tiny.context_tokens = 2048;
  BATON_RETURN_IF_ERROR(WriteTinyModel(model.path(), tiny));
  BATON_ASSIGN_OR_RETURN(
      const std::unique_ptr<Cluster> cluster,
      Cluster::Start({.model = model.path(),
                      .prefill = absl::GetFlag(FLAGS_prefill),
                      .decode = absl::GetFlag(FLAGS_decode),
                      .worker_flags = {},
                      .decode_flags = {},
                      .router_flags = {absl::StrCat("--retries=", absl::GetFlag(FLAGS_retries))}}));
  std::fprintf(stderr, "logs are in %s; finding out what is true\n", cluster->folder().c_str());
  BATON_ASSIGN_OR_RETURN(const std::vector<Truth> truths,
                         FindTruths(model.path(), absl::GetFlag(FLAGS_requests),
                                    absl::GetFlag(FLAGS_tokens), seed, *cluster));

  ChaosStreams streams(cluster.get(), &truths, absl::GetFlag(FLAGS_streams), seed);
  ChaosFaults faults(cluster.get(), absl::GetFlag(FLAGS_prefill), absl::GetFlag(FLAGS_decode),
                     std::chrono::duration_cast<Duration>(
                         std::chrono::duration<double>(absl::GetFlag(FLAGS_fault_seconds))),
                     seed);
  RouterWatch router;
  const Instant start = Now();
  const Instant end =
      start + std::chrono::duration_cast<Duration>(
                  std::chrono::duration<double, std::ratio<60>>(absl::GetFlag(FLAGS_minutes)));
  Instant next_look = start, next_line = start;
  for (Instant now = start; now < end; now = Now()) {
    BATON_RETURN_IF_ERROR(faults.Tick(now));
    if (now >= next_look) {
      router.Look(cluster->router().pid());
      next_look = now + std::chrono::seconds(1);
    }
    if (now >= next_line) {
      const StreamCounts counts = streams.counts();
      std::fprintf(stderr, "%4.0f s: %lu requests, %lu completed, %lu differ, %lu failed\n",
                   ToMilliseconds(now - start) / 1000, counts.requests, counts.completed,
                   counts.differ, counts.failed);
      next_line = now + std::chrono::seconds(10);
    }
    Pause(std::chrono::milliseconds(50));
  }
  BATON_RETURN_IF_ERROR(faults.End(kRecovery));
  streams.Stop();
  Result result;
  result.at_rest = cluster->WaitUntil(Cluster::AtRest, kRecovery);
  router.Settle(cluster->router().pid());
  result.streams = streams.counts();
  result.report = Report(result.streams, faults);
  BATON_ASSIGN_OR_RETURN(const v1::GetClusterResponse status, cluster->Status());
  result.report["blocks_leaked"] = LeakedBlocks(status);
  result.report["at_rest"] = result.at_rest;
  result.report["router"] = router.ToJson();
  if (!result.good()) cluster->KeepLogs();
  return result;
}

int RunAndTell() {
  const absl::StatusOr<Result> result = RunChaos();
  if (!result.ok()) {
    std::fprintf(stderr, "error: %s\n", result.status().ToString().c_str());
    return 2;
  }
  const std::string text = result->report.dump(2);
  std::printf("%s\n", text.c_str());
  if (const std::string file = absl::GetFlag(FLAGS_json); !file.empty()) {
    std::ofstream(file) << text << "\n";
  }
  for (const auto& [what, count] : result->streams.failures) {
    std::printf("failed %d times: %s\n", count, what.c_str());
  }
  if (!result->streams.first_difference.empty()) {
    std::printf("first difference: %s\n", result->streams.first_difference.c_str());
  }
  std::printf("%s\n", result->good() ? "all streams were as undisturbed" : "CHAOS WON");
  return result->good() ? 0 : 1;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "chaos",
       .summary = "Kills, drains and stops workers of a real cluster under load, and compares "
                  "every stream with that of an undisturbed run.",
       .usage = "Usage: BATON_BIN_DIR=build/dev/bin chaos --minutes 20 [flags]",
       .version = baton::Version()});
  return baton::RunAndTell();
}
