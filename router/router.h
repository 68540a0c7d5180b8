// A router process put together: model, thread, worker directory, gRPC service.
#ifndef BATON_ROUTER_ROUTER_H_
#define BATON_ROUTER_ROUTER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/request/model_profile.h"
#include "common/rpc/server.h"
#include "common/telemetry/metrics.h"
#include "router/api_keys.h"
#include "router/router_loop.h"
#include "router/router_metrics.h"
#include "router/router_service.h"
#include "router/worker_directory.h"

namespace baton {

struct RouterOptions {
  std::string model;  // Folder.
  RouterLoopOptions loop;
  WorkerDirectoryOptions workers;
  WorkerDirectory::Resolver resolver = WorkerDirectory::ResolveBySystem;
  RpcServerOptions rpc;
  // Null: whoever reaches the port may call. shared_ptr: as TlsFiles.
  std::shared_ptr<ApiKeys> keys;
  TextPoolOptions texts;
  std::string version;
};

class Router {
 public:
  // Serves when it returns; workers may come later. `metrics` outlives it. Fails with one error
  // that names what is wrong with the model folder, an address or a limit.
  static absl::StatusOr<std::unique_ptr<Router>> Start(RouterOptions options,
                                                       MetricsRegistry* metrics);
  // As DrainAndStop(0).
  ~Router();

  const std::string& address() const { return server_->address(); }

  // Looks whether certificates or API keys have changed. Any thread.
  void ReloadFiles();
  // Health of the service baton.v1.Inference says SERVING while any decode worker is ready: for who
  // sends calls here. That of the server does not depend on workers. To be called again and again.
  void UpdateHealth();

  // Health says NOT_SERVING at once, and clients are told to go to other routers with their next
  // calls; streams have `grace` to finish, then they end with UNAVAILABLE. Idempotent; one thread.
  void DrainAndStop(Duration grace);

 private:
  Router(ModelProfile model, MetricsRegistry* metrics);

  const ModelProfile model_;
  std::shared_ptr<ApiKeys> keys_;  // As the options have it; may be null.
  std::vector<std::shared_ptr<TlsFiles>> certificates_;
  RouterMetrics metrics_;
  std::unique_ptr<RouterLoop> loop_;
  std::unique_ptr<RouterService> service_;
  std::unique_ptr<WorkerDirectory> directory_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace baton

#endif  // BATON_ROUTER_ROUTER_H_
