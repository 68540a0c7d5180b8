// chaos: a cluster of real processes under load, whose workers are killed, drained, stopped and cut
// off, and whose router is killed, at random; what its clients get must be what they would have got
// anyway.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/model/testing/tiny_model.h"
#include "tests/load/chaos_faults.h"
#include "tests/load/chaos_streams.h"
#include "tests/load/usage_watch.h"
#include "tests/support/metrics_page.h"
#include "tests/support/worker_network.h"

ABSL_FLAG(double, minutes, 2, "How long faults last.");
ABSL_FLAG(uint64_t, seed, 1, "Of requests and faults. What happens when is not repeatable.");
ABSL_FLAG(int32_t, streams, 16, "Requests at once.");
ABSL_FLAG(int32_t, prefill, 2, "Prefill workers.");
ABSL_FLAG(int32_t, decode, 2, "Decode workers; faults of decode workers need 2 of them or more.");
ABSL_FLAG(double, fault_seconds, 5, "A fault about so often.");
ABSL_FLAG(
    bool, router_faults, false,
    "Kill the router, too: clients then send again what they asked, with what they have got.");
ABSL_FLAG(
    bool, cuts, true,
    "Cut prefill and decode workers from each other, if network namespaces can be made here.");
ABSL_FLAG(bool, spare_first, false,
          "Leave the first worker of each role alone, to see what it keeps of the others.");
ABSL_FLAG(int32_t, requests, 64, "Different requests to draw from.");
ABSL_FLAG(uint32_t, tokens, 600, "Most tokens of an answer; at most 1700.");
ABSL_FLAG(std::string, worker_flags, "--transfer_seconds=3", "For every worker.");
ABSL_FLAG(std::string, router_flags, "", "For the router.");
ABSL_FLAG(std::string, json, "", "Write the figures here, too.");

namespace baton {
namespace {

constexpr Duration kRecovery = std::chrono::minutes(1);
// Longer than gRPC holds on to a connection that a stopped process has not answered.
constexpr Duration kSettling = std::chrono::seconds(40);

using Json = nlohmann::ordered_json;

// Ctrl-C: the namespaces are to go, too. The next one ends this at once.
volatile std::sig_atomic_t interrupted = 0;
void Interrupt(int signal) {
  interrupted = 1;
  std::signal(signal, SIG_DFL);
}

Duration Seconds(double count) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(count));
}

std::vector<std::string> Split(const std::string& flags) {
  return absl::StrSplit(flags, ' ', absl::SkipEmpty());
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto rank = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

Json Percentiles(const std::vector<double>& values) {
  return {{"p50", Percentile(values, 0.5)},
          {"p90", Percentile(values, 0.9)},
          {"p99", Percentile(values, 0.99)},
          {"max", Percentile(values, 1)}};
}

uint64_t LeakedBlocks(const v1::GetClusterResponse& status) {
  uint64_t leaked = 0;
  for (const v1::WorkerStatus& worker : status.workers()) {
    const v1::WorkerLoad& load = worker.load();
    leaked += load.blocks_total() - load.blocks_free() - load.blocks_cached();
  }
  return leaked;
}

// One line for each figure, one level of names for each object.
void PrintTable(const Json& report, const std::string& indent = "") {
  for (const auto& [name, value] : report.items()) {
    const int width = 42 - static_cast<int>(indent.size());
    if (value.is_object()) {
      std::printf("%s%s\n", indent.c_str(), name.c_str());
      PrintTable(value, indent + "  ");
    } else if (value.is_number_float()) {
      std::printf("%s%-*s %12.1f\n", indent.c_str(), width, name.c_str(), value.get<double>());
    } else {
      std::printf("%s%-*s %12s\n", indent.c_str(), width, name.c_str(), value.dump().c_str());
    }
  }
}

// Counters of all lives of the router.
class RouterCounters {
 public:
  void Add(const Cluster& cluster) {
    const absl::StatusOr<MetricsPage> page = ReadMetrics(cluster.router_metrics_address());
    if (!page.ok()) return;  // It is dead.
    for (const auto& [name, value] : *page) {
      const bool wanted =
          std::any_of(std::begin(kWanted), std::end(kWanted),
                      [&name](const char* start) { return name.starts_with(start); });
      if (wanted) counts_[name] += value;
    }
  }
  Json Report() const {
    Json report = Json::object();
    for (const auto& [name, value] : counts_) report[name] = static_cast<uint64_t>(value);
    return report;
  }

 private:
  static constexpr const char* kWanted[] = {
      "baton_retries_total",  "baton_moves_total",        "baton_fallbacks_total",
      "baton_requests_total", "baton_stale_events_total", "baton_placements_refused_total"};
  MetricsPage counts_;
};

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
          {"calls_resumed", streams.resumed},
          {"completed_after_retries", streams.retried},
          {"retries", streams.retries},
          {"tokens", streams.tokens},
          {"faults", by_kind},
          {"first_token_ms", Percentiles(streams.first_tokens_ms)},
          {"longest_pause_ms", Percentiles(streams.pauses_ms)},
          {"longest_pause_ms_of_retried", Percentiles(streams.retried_pauses_ms)}};
}

ChaosOptions OptionsFromFlags() {
  return {.prefill = absl::GetFlag(FLAGS_prefill),
          .decode = absl::GetFlag(FLAGS_decode),
          .interval = Seconds(absl::GetFlag(FLAGS_fault_seconds)),
          .router_faults = absl::GetFlag(FLAGS_router_faults),
          .spare_first = absl::GetFlag(FLAGS_spare_first),
          .seed = absl::GetFlag(FLAGS_seed)};
}

ClusterOptions ClusterFromFlags(const std::string& model, const WorkerNetwork* network) {
  ClusterOptions options = {.model = model,
                            .prefill = absl::GetFlag(FLAGS_prefill),
                            .decode = absl::GetFlag(FLAGS_decode),
                            .worker_flags = Split(absl::GetFlag(FLAGS_worker_flags)),
                            .decode_flags = {},
                            .router_flags = Split(absl::GetFlag(FLAGS_router_flags)),
                            .wait_for_router = true};
  if (network != nullptr) {
    options.place = [network](const std::string& role, int index,
                              std::vector<std::string>* command) {
      network->Place(role, index, command);
    };
  }
  return options;
}

struct Result {
  StreamCounts streams;
  uint64_t faults = 0;
  Json report;
  bool at_rest = false;
  std::string logs;
  bool good() const {
    return streams.differ == 0 && streams.failed == 0 && at_rest && streams.completed > 0 &&
           faults > 0;
  }
};

class Chaos {
 public:
  // The cluster and what is true are there already.
  Chaos(Cluster* cluster, WorkerNetwork* network, const std::vector<Truth>* truths)
      : cluster_(cluster),
        streams_(cluster, truths, absl::GetFlag(FLAGS_streams), absl::GetFlag(FLAGS_seed)),
        faults_(cluster, network, OptionsFromFlags(), [this](bool up) {
          if (up) return streams_.RouterIsBack();
          counters_.Add(*cluster_);
          streams_.RouterGoes();
        }) {}

  absl::StatusOr<Result> Run() {
    const Instant start = Now();
    const Instant end = start + Seconds(60 * absl::GetFlag(FLAGS_minutes));
    Instant next_look = start, next_line = start;
    for (Instant now = start; now < end; now = Now()) {
      if (interrupted) {
        std::fprintf(stderr, "waiting for the calls under way\n");
        return absl::CancelledError("interrupted");
      }
      BATON_RETURN_IF_ERROR(faults_.Tick(now));
      if (now >= next_look) {
        Look();
        next_look = now + std::chrono::seconds(1);
      }
      if (now >= next_line) {
        PrintProgress(now - start);
        next_line = now + std::chrono::seconds(10);
      }
      absl::Notification().WaitForNotificationWithTimeout(absl::Milliseconds(50));
    }
    BATON_RETURN_IF_ERROR(faults_.End(kRecovery));
    return Finish();
  }

 private:
  void Look() {
    usage_.Look("router", cluster_->router().pid());
    for (int i = 0; i < absl::GetFlag(FLAGS_prefill); ++i) {
      usage_.Look(absl::StrCat("prefill worker ", i), cluster_->prefill(i).pid());
    }
    for (int i = 0; i < absl::GetFlag(FLAGS_decode); ++i) {
      usage_.Look(absl::StrCat("decode worker ", i), cluster_->decode(i).pid());
    }
  }

  void PrintProgress(Duration elapsed) const {
    const StreamCounts counts = streams_.counts();
    std::fprintf(stderr,
                 "%4.0f s: %lu requests, %lu completed, %lu differ, %lu failed; %lu faults\n",
                 ToMilliseconds(elapsed) / 1000, counts.requests, counts.completed, counts.differ,
                 counts.failed, faults_.count());
  }

  absl::StatusOr<Result> Finish() {
    streams_.Stop();
    Result result;
    result.at_rest = cluster_->WaitUntil(Cluster::AtRest, kRecovery);
    Look();
    usage_.Settle(kSettling);
    counters_.Add(*cluster_);
    result.streams = streams_.counts();
    result.faults = faults_.count();
    result.report = Report(result.streams, faults_);
    BATON_ASSIGN_OR_RETURN(const v1::GetClusterResponse status, cluster_->Status());
    result.report["blocks_leaked"] = LeakedBlocks(status);
    result.report["at_rest"] = result.at_rest;
    result.report["router_counters"] = counters_.Report();
    result.report["last_lives"] = usage_.Report();
    result.logs = cluster_->folder();
    if (!result.good()) cluster_->KeepLogs();
    return result;
  }

  Cluster* const cluster_;
  UsageWatch usage_;
  RouterCounters counters_;
  ChaosStreams streams_;
  ChaosFaults faults_;
};

absl::StatusOr<Result> RunOn(Cluster& cluster, WorkerNetwork* network, const std::string& model) {
  BATON_ASSIGN_OR_RETURN(
      const std::vector<Truth> truths,
      FindTruths(model, absl::GetFlag(FLAGS_requests), absl::GetFlag(FLAGS_tokens),
                 absl::GetFlag(FLAGS_seed), cluster));
  return Chaos(&cluster, network, &truths).Run();
}

absl::StatusOr<Result> RunChaos() {
  const TemporaryFolder model;
  TinyModelOptions tiny;
  tiny.layers = 3;
  tiny.context_tokens = 2048;
  BATON_RETURN_IF_ERROR(WriteTinyModel(model.path(), tiny));
  std::unique_ptr<WorkerNetwork> network;
  if (absl::GetFlag(FLAGS_cuts)) {
    auto made = WorkerNetwork::Create(absl::GetFlag(FLAGS_prefill), absl::GetFlag(FLAGS_decode));
    if (absl::IsUnavailable(made.status())) {
      std::fprintf(stderr, "no cuts: %s\n", made.status().ToString().c_str());
    } else {
      BATON_ASSIGN_OR_RETURN(network, std::move(made));
    }
  }
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster,
                         Cluster::Start(ClusterFromFlags(model.path(), network.get())));
  std::fprintf(stderr, "logs are in %s; finding out what is true\n", cluster->folder().c_str());
  absl::StatusOr<Result> result = RunOn(*cluster, network.get(), model.path());
  if (!result.ok()) cluster->KeepLogs();
  return result;
}

int RunAndTell() {
  const absl::StatusOr<Result> result = RunChaos();
  if (!result.ok()) {
    std::fprintf(stderr, "error: %s\n--seed was %lu\n", result.status().ToString().c_str(),
                 absl::GetFlag(FLAGS_seed));
    return 1;
  }
  PrintTable(result->report);
  if (const std::string file = absl::GetFlag(FLAGS_json); !file.empty()) {
    std::ofstream(file) << result->report.dump(2) << "\n";
  }
  for (const auto& [what, count] : result->streams.failures) {
    std::printf("failed %d times: %s\n", count, what.c_str());
  }
  if (!result->streams.first_difference.empty()) {
    std::printf("first difference: %s\n", result->streams.first_difference.c_str());
  }
  if (result->faults == 0) std::printf("it was too short for a fault\n");
  if (result->good()) {
    std::printf("every stream was as if nothing had happened\n");
    return 0;
  }
  std::printf("BROKEN: see above, and the logs in %s; --seed was %lu\n", result->logs.c_str(),
              absl::GetFlag(FLAGS_seed));
  return 1;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "chaos",
       .summary = "Kills, drains, stops and cuts off workers of a real cluster under load, and "
                  "compares every stream with that of an undisturbed run.",
       .usage = "Usage: BATON_BIN_DIR=build/dev/bin chaos --minutes 20 [flags]\n\n"
                "Exits with 1, and keeps the logs, when a stream differs or fails, or when blocks "
                "do not come\nhome once the faults are over.",
       .version = baton::Version()});
  std::signal(SIGINT, &baton::Interrupt);
  std::signal(SIGTERM, &baton::Interrupt);
  return baton::RunAndTell();
}
