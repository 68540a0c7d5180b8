#include "common/worker/worker.h"

#include <atomic>
#include <map>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/base/bounded_queue.h"
#include "common/base/check.h"
#include "common/base/secure_random.h"
#include "common/base/status_macros.h"
#include "common/rpc/message_limit.h"
#include "common/rpc/session_server.h"
#include "common/telemetry/log.h"
#include "common/worker/agent_port.h"
#include "common/worker/engine_watch.h"
#include "common/worker/worker_metrics.h"

namespace baton {
namespace {

constexpr Duration kTick = std::chrono::milliseconds(50);
constexpr Duration kLoadInterval = std::chrono::milliseconds(250);
constexpr Duration kLoopbackDeadline = std::chrono::seconds(10);
constexpr ProbeId kLoopbackProbe{0};  // Engines count theirs from 1.
// Commands beyond the first bound are refused by closing their session; transfer events and ends of
// sessions are bounded by what was commanded, and must find room in the rest.
constexpr size_t kInboxCommandsMax = size_t{1} << 16;
constexpr size_t kInboxMax = size_t{1} << 20;

struct SessionOpened {
  SessionId session;
  Incarnation router;
};
struct SessionCommand {
  SessionId session;
  v1::Command command;
};
struct SessionClosed {
  SessionId session;
};
struct DrainRequested {};
using InboxItem =
    std::variant<SessionOpened, SessionCommand, SessionClosed, TransferEvent, DrainRequested>;

}  // namespace

class Worker::Impl final : public SessionHandler, public EventPort {
 public:
  Impl(const WorkerOptions& options, EngineParts parts, MetricsRegistry* metrics)
      : options_(options),
        parts_(std::move(parts)),
        incarnation_(RandomIncarnation()),
        watch_(options.engine_stall_max, Now()),
        metrics_registry_(metrics),
        metrics_(metrics),
        inbox_(kInboxMax) {}

  ~Impl() override { Stop(absl::UnavailableError("the worker stopped")); }

  absl::Status Start(const EngineFactory& make_engine) {
    BATON_RETURN_IF_ERROR(CheckMessageLimit(parts_.model->config().context_tokens,
                                            options_.rpc.receive_message_bytes_max));
    BATON_ASSIGN_OR_RETURN(
        std::unique_ptr<TransferAgent> agent,
        ExplainMemory(TransferAgent::Create(
                          options_.transfers, *parts_.arena,
                          [this](TransferEvent event) { OnTransferEvent(std::move(event)); }),
                      "KV transfers",
                      options_.transfers.staging_memory == StagingMemory::kDevice
                          ? "a smaller --kv_memory leaves more"
                          : "the host needs more that is free and may be pinned"));
    LogInfo("kv handoff", {{"device", parts_.arena->device().name()},
                           {"staging", agent->staging()},
                           {"staging_bytes", agent->staging_bytes()},
                           {"staging_reason", agent->staging_reason()},
                           {"transport", agent->transport_name()},
                           {"transport_memory", agent->transport_memory()}});
    metrics_registry_
        ->AddGauge("baton_handoff_staging_size_bytes",
                   "Memory that KV on a GPU passes through on its way, by where that is",
                   {{"memory", agent->staging()}})
        .Set(static_cast<double>(agent->staging_bytes()));
    transfers_ = std::make_unique<AgentPort>(std::move(agent));
    hello_ = MakeHello();
    BATON_ASSIGN_OR_RETURN(engine_, make_engine({.parts = &parts_,
                                                 .incarnation = incarnation_,
                                                 .events = this,
                                                 .transfers = transfers_.get()}));
    engine_thread_ = std::thread([this] { RunEngine(); });
    BATON_RETURN_IF_ERROR(ProbeItself());
    SessionServerOptions session_options;
    session_options.metrics = metrics_registry_;
    session_options.check = [this](Instant now) { return watch_.Check(now); };
    sessions_ = std::make_unique<SessionServer>(this, session_options);
    published_sessions_.store(sessions_.get(), std::memory_order_release);
    BATON_ASSIGN_OR_RETURN(server_, RpcServer::Start(options_.rpc, {sessions_.get()}));
    published_server_.store(server_.get(), std::memory_order_release);
    server_->SetServing(true);
    // A device that was lost before the server was published.
    if (!watch_.broken().ok()) server_->SetServing(false);
    return absl::OkStatus();
  }

  absl::Status CheckEngine() {
    server_->SetServing(watch_.Check(Now()).ok());
    return watch_.broken();
  }

  const std::string& address() const { return server_->address(); }

  void Drain(Duration grace) {
    server_->BeginDrain();
    Push(DrainRequested{});
    drained_.WaitForNotificationWithTimeout(absl::FromChrono(grace));
    Stop(absl::UnavailableError("the worker is shutting down"));
  }

  void Stop(const absl::Status& reason) {
    if (stopped_) return;
    stopped_ = true;
    if (sessions_ != nullptr) sessions_->Shutdown(reason);
    if (server_ != nullptr) server_->Shutdown(std::chrono::milliseconds(500));
    if (transfers_ != nullptr) transfers_->agent().Stop();
    inbox_.Close();
    if (engine_thread_.joinable()) engine_thread_.join();
    engine_.reset();
    server_.reset();
    sessions_.reset();
  }

  // --- SessionHandler: gRPC's threads. -----------------------------------------------------------

  absl::StatusOr<v1::WorkerHello> OnSessionOpened(SessionId session,
                                                  const v1::RouterHello& hello) override {
    if (hello.router_incarnation() == 0) {
      return absl::InvalidArgumentError("hello.router_incarnation is 0");
    }
    Push(SessionOpened{session, Incarnation{hello.router_incarnation()}});
    return hello_;
  }

  void OnCommand(SessionId session, v1::Command command) override {
    if (inbox_.size() >= kInboxCommandsMax) {
      sessions_->Close(session, absl::ResourceExhaustedError("too many commands wait here"));
      return;
    }
    Push(SessionCommand{session, std::move(command)});
  }

  void OnSessionClosed(SessionId session) override { Push(SessionClosed{session}); }

  // --- EventPort: the engine thread. -------------------------------------------------------------

  void Send(Incarnation router, v1::Event event) override {
    LogFailure(event);
    const auto it = session_of_.find(router);
    if (it != session_of_.end()) SendTo(it->second, std::move(event));
  }

 private:
  void Push(InboxItem item) {
    const bool pushed = inbox_.TryPush(std::move(item));
    // After Stop nobody listens any more; before, the bounds on commands leave room for the rest.
    BATON_CHECK(pushed || inbox_.closed());
  }

  // The transfer thread.
  void OnTransferEvent(TransferEvent event) {
    const auto* probe = std::get_if<ProbeFinished>(&event);
    if (probe != nullptr && probe->id == kLoopbackProbe) {
      loopback_status_ = probe->status;
      loopback_done_.Notify();
      return;
    }
    Push(std::move(event));
  }

  absl::Status ProbeItself() {
    BATON_RETURN_IF_ERROR(transfers_->Probe(kLoopbackProbe, transfers_->address()));
    if (!loopback_done_.WaitForNotificationWithTimeout(absl::FromChrono(kLoopbackDeadline))) {
      return absl::UnavailableError("the worker's transfer to itself did not finish in 10 s");
    }
    if (!loopback_status_.ok()) {
      return absl::UnavailableError(absl::StrCat("the worker's transfer to itself failed: ",
                                                 std::string(loopback_status_.message())));
    }
    return absl::OkStatus();
  }

  v1::WorkerHello MakeHello() const {
    v1::WorkerHello hello = options_.hello;
    hello.set_incarnation(Raw(incarnation_));
    *hello.mutable_model() = parts_.ModelInfo();
    hello.set_transfer_address(transfers_->address());
    hello.set_blocks_total(parts_.pool->counts().total);
    hello.set_version(options_.version);
    hello.set_sequences_max(parts_.options.sequences_max);
    return hello;
  }

  // --- The engine thread. ------------------------------------------------------------------------

  void RunEngine() {
    bool can_step = false;
    Instant next_tick = Now();
    for (;;) {
      std::vector<InboxItem> items =
          can_step ? inbox_.TakeAll() : inbox_.WaitAll(absl::FromChrono(kTick));
      for (InboxItem& item : items) Dispatch(std::move(item));
      if (items.empty() && inbox_.closed()) return;
      const Instant now = Now();
      if (now >= next_tick) {
        Tick(now);
        next_tick = now + kTick;
      }
      can_step = engine_->HasWork() && Step();
      // After every round: a device can also be lost in a copy of KV, and without a step.
      if (const absl::Status health = parts_.model->Health(); !health.ok()) Break(health);
      watch_.RoundEnded(Now());
    }
  }

  bool Step() {
    const Instant start = Now();
    if (!engine_->Step(start)) return false;
    metrics_.ObserveStep(Now() - start);
    return true;
  }

  // Routers go to other workers, and the owner is told when it asks.
  void Break(const absl::Status& reason) {
    if (std::exchange(broken_, true)) return;
    LogError("the device is lost", {{"reason", reason.ToString()}});
    watch_.Break(reason);
    if (RpcServer* server = published_server_.load(std::memory_order_acquire)) {
      server->SetServing(false);
    }
    // At once: whoever hears that a request has failed here must not bring it back.
    for (const auto& [session, router] : router_of_) {
      published_sessions_.load(std::memory_order_acquire)->Close(session, reason);
    }
  }

  void Dispatch(InboxItem item) {
    const Instant now = Now();
    if (auto* opened = std::get_if<SessionOpened>(&item)) {
      session_of_[opened->router] = opened->session;
      router_of_[opened->session] = opened->router;
      SendLoad(opened->session);
      if (draining_) SendTo(opened->session, DrainingEvent());
    } else if (auto* command = std::get_if<SessionCommand>(&item)) {
      const auto router = router_of_.find(command->session);
      if (router == router_of_.end()) return;
      LogWork(command->command);
      if (command->command.has_drain()) options_.drain_asked();
      engine_->OnCommand(router->second, command->command, now);
    } else if (auto* closed = std::get_if<SessionClosed>(&item)) {
      OnClosed(closed->session);
    } else if (auto* transfer = std::get_if<TransferEvent>(&item)) {
      LogFailure(*transfer);
      engine_->OnTransferEvent(*transfer, now);
    } else {
      draining_ = true;
      LogInfo("draining");
      engine_->BeginDrain();
      for (const auto& [session, router] : router_of_) SendTo(session, DrainingEvent());
    }
  }

  // Leads from the client's name of a request to the number that other messages carry.
  static void LogWork(const v1::Command& command) {
    const bool prefill = command.has_prefill();
    if (!prefill && !command.has_admit()) return;
    const v1::Work& work = prefill ? command.prefill().work() : command.admit().work();
    LogInfo(prefill ? "prefill" : "admit", {{"request", work.client_request_id()},
                                            {"number", work.request()},
                                            {"tokens", work.tokens_size()}});
  }

  static void LogFailure(const v1::Event& event) {
    const auto log = [](const char* what, const auto& failure) {
      LogInfo(what, {{"number", failure.request()}, {"reason", failure.message()}});
    };
    if (event.has_rejected()) log("rejected", event.rejected());
    if (event.has_prefill_failed()) log("prefill failed", event.prefill_failed());
    if (event.has_failed()) log("failed", event.failed());
  }

  // The sender gets to know only that its bytes were not received.
  static void LogFailure(const TransferEvent& event) {
    if (const auto* failed = std::get_if<LeaseFailed>(&event)) {
      LogInfo("receiving failed", {{"lease", Raw(failed->lease)}, {"reason", failed->status}});
    }
  }

  void OnClosed(SessionId session) {
    const auto it = router_of_.find(session);
    if (it == router_of_.end()) return;
    const Incarnation router = it->second;
    router_of_.erase(it);
    session_of_.erase(router);
    engine_->OnSessionClosed(router);
  }

  void Tick(Instant now) {
    engine_->OnTick(now);
    metrics_.Update(engine_->Load(), engine_->stats(), transfers_->agent().stats());
    if (now >= next_load_) {
      for (const auto& [session, router] : router_of_) SendLoad(session);
      next_load_ = now + kLoadInterval;
    }
    if (!draining_ || !engine_->idle() || drained_.HasBeenNotified()) return;
    v1::Event drained;
    drained.mutable_drained();
    for (const auto& [session, router] : router_of_) SendTo(session, drained);
    drained_.Notify();
  }

  void SendLoad(SessionId session) {
    v1::Event event;
    *event.mutable_load()->mutable_load() = engine_->Load();
    SendTo(session, std::move(event));
  }

  static v1::Event DrainingEvent() {
    v1::Event event;
    event.mutable_draining();
    return event;
  }

  void SendTo(SessionId session, v1::Event event) {
    // A session exists only after its server was published.
    published_sessions_.load(std::memory_order_acquire)->Send(session, std::move(event));
  }

  const WorkerOptions options_;
  EngineParts parts_;
  const Incarnation incarnation_;
  EngineWatch watch_;
  MetricsRegistry* const metrics_registry_;
  WorkerMetrics metrics_;  // Engine thread.
  BoundedQueue<InboxItem> inbox_;
  v1::WorkerHello hello_;  // Constant once sessions are served.

  absl::Status loopback_status_;  // Written before the notification.
  absl::Notification loopback_done_;
  absl::Notification drained_;

  std::unique_ptr<AgentPort> transfers_;
  std::unique_ptr<WorkerEngine> engine_;
  std::unique_ptr<SessionServer> sessions_;
  std::atomic<SessionServer*> published_sessions_{nullptr};
  std::atomic<RpcServer*> published_server_{nullptr};
  std::unique_ptr<RpcServer> server_;
  std::thread engine_thread_;
  bool stopped_ = false;  // Owner's thread.

  // Engine thread.
  std::map<Incarnation, SessionId> session_of_;
  std::map<SessionId, Incarnation> router_of_;
  bool draining_ = false;
  bool broken_ = false;
  Instant next_load_{};
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(const WorkerOptions& options,
                                                      EngineParts parts,
                                                      const EngineFactory& make_engine,
                                                      MetricsRegistry* metrics) {
  auto impl = std::make_unique<Impl>(options, std::move(parts), metrics);
  BATON_RETURN_IF_ERROR(impl->Start(make_engine));
  return std::unique_ptr<Worker>(new Worker(std::move(impl)));
}

const std::string& Worker::address() const { return impl_->address(); }

absl::Status Worker::CheckEngine() { return impl_->CheckEngine(); }

void Worker::DrainAndStop(Duration grace) { impl_->Drain(grace); }

}  // namespace baton
