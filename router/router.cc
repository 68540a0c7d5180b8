#include "router/router.h"

#include <algorithm>
#include <utility>

#include "common/base/secure_random.h"
#include "common/base/status_macros.h"
#include "common/rpc/message_limit.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

// Its name in the health service.
constexpr char kService[] = "baton.v1.Inference";
// How long calls that have ended may take to be flushed to their clients.
constexpr Duration kFlushGrace = std::chrono::seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> Router::Start(RouterOptions options,
                                                      MetricsRegistry* metrics) {
  BATON_ASSIGN_OR_RETURN(ModelProfile model, ModelProfile::Load(options.model));
  BATON_RETURN_IF_ERROR(CheckMessageLimit(
      model.context_tokens, std::min(options.rpc.receive_message_bytes_max,
                                     options.loop.session.channel.message_bytes_max)));
  if (!model.chat.ok()) {
    LogWarning("chat calls will be refused", {{"reason", model.chat.status()}});
  }
  LogInfo("model", {{"name", model.name},
                    {"architecture", model.architecture},
                    {"context_tokens", model.context_tokens}});
  std::unique_ptr<Router> router(new Router(std::move(model), metrics));
  router->keys_ = std::move(options.keys);
  for (const auto& files : {options.rpc.tls, options.loop.session.channel.tls}) {
    if (files != nullptr) router->certificates_.push_back(files);
  }
  if (router->keys_ != nullptr && options.rpc.tls == nullptr) {
    LogWarning("API keys travel in clear text: give --tls_cert and --tls_key");
  }
  const Incarnation incarnation = RandomIncarnation();
  options.loop.core.cluster.vocab_size = router->model_.vocab_size;
  options.loop.core.cluster.context_tokens = router->model_.context_tokens;
  options.loop.core.cluster.architecture = router->model_.architecture;
  options.loop.session.router_incarnation = incarnation;
  options.loop.session.version = options.version;
  options.loop.session.seed = SecureRandom();
  router->loop_ = std::make_unique<RouterLoop>(std::move(options.loop), &router->metrics_);
  router->service_ = std::make_unique<RouterService>(RouterService::Options{
      .model = &router->model_,
      .loop = router->loop_.get(),
      .metrics = &router->metrics_,
      .keys = router->keys_.get(),
      .incarnation = incarnation,
      .version = options.version,
      .random = SecureRandom,
      .texts = options.texts,
  });
  BATON_ASSIGN_OR_RETURN(router->server_, RpcServer::Start(options.rpc, {router->service_.get()}));
  BATON_ASSIGN_OR_RETURN(
      router->directory_,
      WorkerDirectory::Start(
          options.workers, std::move(options.resolver),
          [loop = router->loop_.get()](v1::Role role, std::vector<std::string> addresses) {
            loop->SetWorkers(role, std::move(addresses));
          }));
  router->server_->SetServing(true);
  router->UpdateHealth();
  return router;
}

Router::Router(ModelProfile model, MetricsRegistry* metrics)
    : model_(std::move(model)), metrics_(metrics) {}

Router::~Router() { DrainAndStop(Duration::zero()); }

void Router::ReloadFiles() {
  for (const auto& files : certificates_) files->Reload();
  if (keys_ != nullptr) keys_->Reload();
}

void Router::UpdateHealth() { server_->SetServing(loop_->ready(), kService); }

void Router::DrainAndStop(Duration grace) {
  if (server_ != nullptr) server_->StopListening();
  loop_->Stop(grace);
  if (server_ != nullptr) server_->Shutdown(kFlushGrace);
  // Last: it may be waiting for a name server, and no client should wait with it.
  directory_.reset();
}

}  // namespace baton
