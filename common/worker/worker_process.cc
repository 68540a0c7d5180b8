// The main() of prefill and decode workers.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/model/warm_up.h"
#include "common/rpc/termination.h"
#include "common/telemetry/log.h"
#include "common/worker/worker.h"

ABSL_FLAG(
    uint32_t, drain_seconds, 30,
    "After SIGTERM or `baton drain`, how long running sequences may take to finish or to move "
    "to another worker before they are ended.");

ABSL_FLAG(uint32_t, engine_stall_seconds, 120,
          "A step of the engine that takes longer is taken for a hang: the sessions are broken, so "
          "that routers go elsewhere. 0: never.");

ABSL_FLAG(
    std::string, transfer_host, "",
    "The IP address at which other workers reach this one for KV transfers, at any free port. "
    "Empty: every IPv4 address of this machine; the others find the best way.");

ABSL_FLAG(
    uint32_t, transfer_seconds, 10,
    "A KV transfer that makes no progress for so long has failed: the way to the other worker "
    "is taken for broken, and its request is tried elsewhere.");

ABSL_FLAG(
    std::string, kv_staging, "pinned",
    "What KV on a GPU passes through on its way to and from other workers: `pinned` memory of "
    "the host, memory of the `device`, which needs a UCX that was built with CUDA, or `auto`: "
    "the latter if a message to itself arrives that way.");

ABSL_FLAG(
    bool, warm_up, true,
    "On a GPU, compute a chunk and decode steps of every size before requests are taken: what is "
    "loaded, tried out and recorded when a size comes first is not waited for by clients then.");

namespace baton {
namespace {

// What ends after a drain ends by then.
constexpr Duration kStopTimeMax = std::chrono::seconds(10);

absl::StatusOr<std::optional<StagingMemory>> StagingFromFlags() {
  const std::string name = absl::GetFlag(FLAGS_kv_staging);
  if (name == "auto") return std::nullopt;
  if (name == "pinned") return StagingMemory::kPinned;
  if (name == "device") return StagingMemory::kDevice;
  return absl::InvalidArgumentError("--kv_staging '" + name + "': choose pinned, device or auto");
}

// Says every few seconds how far the weights are.
class LoadProgress {
 public:
  explicit LoadProgress(Instant start) : next_(start + kInterval) {}
  void Report(uint64_t done, uint64_t total, Instant now) {
    if (now < next_) return;
    next_ = now + kInterval;
    LogInfo("loading weights", {{"megabytes", done >> 20}, {"of", total >> 20}});
  }

 private:
  static constexpr Duration kInterval = std::chrono::seconds(2);
  Instant next_;
};

// Ends the process if its owner does not stop in time: an engine that hangs cannot be waited for.
class LastResort {
 public:
  explicit LastResort(Duration limit)
      : thread_([this, limit] {
          if (stopped_.WaitForNotificationWithTimeout(absl::FromChrono(limit))) return;
          LogError("the engine hangs; the process ends without it");
          std::_Exit(1);
        }) {}
  ~LastResort() {
    stopped_.Notify();
    thread_.join();
  }
  LastResort(const LastResort&) = delete;
  LastResort& operator=(const LastResort&) = delete;

 private:
  absl::Notification stopped_;
  std::thread thread_;
};

absl::Status WarmUpFor(v1::Role role, EngineParts& parts) {
  if (!absl::GetFlag(FLAGS_warm_up)) return absl::OkStatus();
  const Instant start = Now();
  const EngineOptions& options = parts.options;
  BATON_ASSIGN_OR_RETURN(
      const uint32_t steps,
      WarmUp(*parts.model, *parts.arena,
             {.chunk_tokens = options.chunk_tokens,
              .sequences_max = role == v1::ROLE_DECODE ? options.sequences_max : 0}));
  if (steps > 0) LogInfo("warm", {{"steps", steps}, {"ms", ToMilliseconds(Now() - start)}});
  return absl::OkStatus();
}

absl::Status Serve(const v1::WorkerHello& hello, const EngineFactory& make_engine) {
  // First, so that every later thread has the signals blocked.
  TerminationSignal termination;
  termination.ExitAtOnce(true);  // Nobody has been promised anything yet, and loading takes long.
  if (termination.requested()) return absl::CancelledError("told to end before it had begun");
  WorkerOptions options;
  options.hello = hello;
  BATON_ASSIGN_OR_RETURN(options.rpc, RpcServerOptionsFromFlags());
  options.transfers.listen_host = absl::GetFlag(FLAGS_transfer_host);
  options.transfers.transfer_deadline =
      std::chrono::seconds(std::max(1u, absl::GetFlag(FLAGS_transfer_seconds)));
  BATON_ASSIGN_OR_RETURN(options.transfers.staging_memory, StagingFromFlags());
  options.version = Version();
  options.drain_asked = [&termination] { termination.Request(); };
  options.engine_stall_max = std::chrono::seconds(absl::GetFlag(FLAGS_engine_stall_seconds));
  BATON_ASSIGN_OR_RETURN(const EngineOptions engine_options, EngineOptionsFromFlags());
  LogInfo("loading model", {{"model", engine_options.model}});
  const Instant load_start = Now();
  LoadProgress progress(load_start);
  BATON_ASSIGN_OR_RETURN(EngineParts parts,
                         EngineParts::Create(engine_options, [&](uint64_t done, uint64_t total) {
                           progress.Report(done, total, Now());
                         }));
  LogInfo("model loaded", {{"parameters", parts.model->parameter_count()},
                           {"numerics", parts.model->numerics()},
                           {"kv_blocks", parts.pool->counts().total},
                           {"threads", engine_options.threads},
                           {"ms", ToMilliseconds(Now() - load_start)}});
  BATON_RETURN_IF_ERROR(WarmUpFor(hello.role(), parts));
  termination.ExitAtOnce(false);
  MetricsRegistry metrics;
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<MetricsServer> metrics_server,
                         MetricsServer::StartFromFlags(metrics));
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Worker> worker,
                         Worker::Start(options, std::move(parts), make_engine, &metrics));
  // For scripts: what was bound, on stdout.
  std::printf("listening on %s\n", worker->address().c_str());
  if (metrics_server != nullptr) std::printf("metrics on %s\n", metrics_server->address().c_str());
  std::fflush(stdout);
  absl::Status lost;
  while (lost.ok() && !termination.WaitFor(kReloadInterval)) {
    if (options.rpc.tls != nullptr) options.rpc.tls->Reload();
    lost = worker->CheckEngine();
  }
  const Duration grace = lost.ok() ? std::chrono::seconds(absl::GetFlag(FLAGS_drain_seconds))
                                   : std::chrono::seconds(0);
  const LastResort last_resort(grace + kStopTimeMax);
  worker->DrainAndStop(grace);
  LogInfo("stopped");
  return lost;
}

}  // namespace

int ReportFailure(const absl::Status& status) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}

int RunWorkerProcess(const v1::WorkerHello& hello, const EngineFactory& make_engine) {
  const absl::Status status = Serve(hello, make_engine);
  return status.ok() ? 0 : ReportFailure(status);
}

}  // namespace baton
