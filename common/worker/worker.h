// A worker process around its engine: the engine thread, the transfer agent, the sessions, the
// metrics, and an orderly end.
//
// The engine thread alone touches engine, block pool and model. Sessions and transfers reach it
// through one bounded queue; it answers through SessionServer::Send and the agent's commands, which
// never block. See "Threads of a worker" in ARCHITECTURE.md.
#ifndef BATON_COMMON_WORKER_WORKER_H_
#define BATON_COMMON_WORKER_WORKER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/engine/ports.h"
#include "common/engine/worker_engine.h"
#include "common/kv_transfer/transfer_agent.h"
#include "common/rpc/server.h"
#include "common/telemetry/metrics.h"
#include "common/worker/engine_parts.h"
#include "proto/types.pb.h"

namespace baton {

// What an engine is made from. All of it outlives the engine.
struct EngineContext {
  EngineParts* parts;
  Incarnation incarnation;
  EventPort* events;
  TransferPort* transfers;
};
using EngineFactory =
    std::function<absl::StatusOr<std::unique_ptr<WorkerEngine>>(const EngineContext&)>;

struct WorkerOptions {
  v1::WorkerHello hello;  // Role and local prefill; the worker fills in the rest.
  RpcServerOptions rpc;
  TransferOptions transfers;
  std::string version;
  // The longest that one step may take before the worker breaks its sessions; zero: any time.
  Duration engine_stall_max = std::chrono::seconds(120);
  // A router told the worker to drain; from the engine's thread. The owner calls DrainAndStop.
  std::function<void()> drain_asked = [] {};
};

class Worker {
 public:
  // Starts serving: when it returns, a transfer to the worker itself has passed and health says
  // SERVING. `metrics` outlives the worker.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const WorkerOptions& options,
                                                       EngineParts parts,
                                                       const EngineFactory& make_engine,
                                                       MetricsRegistry* metrics);
  // Stops at once.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // host:port of the sessions.
  const std::string& address() const;

  // Looks whether the engine comes back from its steps, and has health say so: to be called again
  // and again. kUnavailable: the device is lost, and only a new process may find it again.
  absl::Status CheckEngine();

  // Health says NOT_SERVING at once, new work is refused, and what runs may finish for up to
  // `grace`; the rest ends with UNAVAILABLE. Then everything stops.
  void DrainAndStop(Duration grace);

 private:
  class Impl;
  explicit Worker(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

// Prints one line that says what is wrong, and returns main()'s exit code.
int ReportFailure(const absl::Status& status);

// The whole of a worker's main() after the command line: parts and addresses from flags, a worker,
// SIGTERM. Returns the process's exit code.
int RunWorkerProcess(const v1::WorkerHello& hello, const EngineFactory& make_engine);

}  // namespace baton

#endif  // BATON_COMMON_WORKER_WORKER_H_
