#include "common/rpc/session_server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/ids.h"
#include "common/rpc/outbox.h"
#include "common/rpc/status_codec.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

// Idle streams are looked at so many times per heartbeat interval.
constexpr int kTicksPerHeartbeat = 4;

// Answers a call with a status and nothing else.
class Refusal final : public grpc::ServerBidiReactor<v1::Command, v1::Event> {
 public:
  explicit Refusal(const absl::Status& status) { Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

std::string SilenceMessage(Duration silence_max) {
  return absl::StrCat("the router was silent for ", ToMilliseconds(silence_max), " ms");
}

}  // namespace

struct SessionServer::Metrics {
  explicit Metrics(MetricsRegistry* registry)
      : open(registry->AddGauge("baton_sessions", "Sessions with routers that are open.")),
        accepted(
            registry->AddCounter("baton_sessions_accepted_total", "Sessions that routers opened.")),
        registry_(registry) {}

  Counter& Ended(EndReason reason) {
    return registry_->AddCounter("baton_sessions_ended_total",
                                 "Streams of routers that ended, by reason.",
                                 {{"reason", Name(reason)}});
  }

  static const char* Name(EndReason reason) {
    switch (reason) {
      case EndReason::kPeer:
        return "peer";
      case EndReason::kSilence:
        return "silence";
      case EndReason::kOverflow:
        return "overflow";
      case EndReason::kRetired:
        return "retired";
      case EndReason::kRefused:
        return "refused";
      case EndReason::kProtocol:
        return "protocol";
      case EndReason::kStalled:
        return "stalled";
      case EndReason::kClosed:
        return "closed";
    }
    return "unknown";
  }

  Gauge& open;
  Counter& accepted;

 private:
  MetricsRegistry* const registry_;
};

// One call. Two locks: `delivery_mutex_` is held around calls of the handler and orders them,
// `mutex_` guards the stream's state and is held only for moments.
class SessionServer::Stream final : public grpc::ServerBidiReactor<v1::Command, v1::Event>,
                                    public std::enable_shared_from_this<Stream> {
 public:
  Stream(SessionServer* server, SessionId id, grpc::CallbackServerContext* context)
      : server_(server),
        id_(id),
        context_(context),
        last_received_(Now()),
        last_sent_(last_received_),
        outbox_(server->options_.outbox_events_max, server->options_.outbox_bytes_max) {
    StartRead(&incoming_);
  }

  SessionId id() const { return id_; }
  bool ended() const {
    absl::MutexLock lock(&mutex_);
    return ended_;
  }

  void Push(v1::Event&& event);
  // Ends the stream. `flush`: what is queued is still written. The first call decides.
  void End(EndReason reason, const absl::Status& status, bool flush);
  // Tells the handler that the session has closed if it knows of it, once.
  void DeliverClosed();
  void Tick(Instant now);

  // gRPC's reactions.
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override { End(EndReason::kPeer, absl::CancelledError("cancelled"), false); }
  void OnDone() override;

 private:
  // What the handler knows of the session.
  enum class Phase { kUnknown, kOpen, kClosed };

  void HandleHello();
  void HandleCommand();
  // Starts the next operation: a write, or the end once nothing is left to write.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Write(v1::Event&& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  SessionServer* const server_;
  const SessionId id_;
  grpc::CallbackServerContext* const context_;  // Valid until OnDone.
  v1::Command incoming_;                        // Of the read in progress or its reaction.
  bool hello_seen_ = false;                     // Of the read reactions, which come one by one.

  // Of several streams, the one of the higher session number is locked first.
  absl::Mutex delivery_mutex_;
  Phase phase_ ABSL_GUARDED_BY(delivery_mutex_) = Phase::kUnknown;

  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(delivery_mutex_);
  bool accepted_ ABSL_GUARDED_BY(mutex_) = false;  // Our hello is written or being written.
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finish_called_ ABSL_GUARDED_BY(mutex_) = false;  // No operation is started after it.
  bool cut_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
  Instant end_time_ ABSL_GUARDED_BY(mutex_);
  Instant last_received_ ABSL_GUARDED_BY(mutex_);
  Instant last_sent_ ABSL_GUARDED_BY(mutex_);
  v1::Event outgoing_ ABSL_GUARDED_BY(mutex_);  // Of the write in progress.
  Outbox<v1::Event> outbox_ ABSL_GUARDED_BY(mutex_);
};

void SessionServer::Stream::Push(v1::Event&& event) {
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    if (outbox_.Push(std::move(event))) {
      Advance();
      return;
    }
  }
  End(EndReason::kOverflow,
      absl::ResourceExhaustedError("the router does not read its events: the backlog is full"),
      /*flush=*/false);
}

void SessionServer::Stream::Advance() {
  if (writing_ || finish_called_) return;
  if (accepted_ && !outbox_.empty()) {
    Write(outbox_.Pop());
  } else if (ended_) {
    finish_called_ = true;
    Finish(ToGrpcStatus(end_status_));
  }
}

void SessionServer::Stream::Write(v1::Event&& event) {
  outgoing_ = std::move(event);
  writing_ = true;
  last_sent_ = Now();
  StartWrite(&outgoing_);
}

void SessionServer::Stream::End(EndReason reason, const absl::Status& status, bool flush) {
  {
    absl::MutexLock lock(&mutex_);
    if (!flush) outbox_.Clear();
    if (ended_) {
      Advance();
      return;
    }
    ended_ = true;
    end_status_ = status;
    end_time_ = Now();
    Advance();
  }
  server_->metrics_->Ended(reason).Increment();
  LogInfo("session ended",
          {{"session", Raw(id_)}, {"reason", Metrics::Name(reason)}, {"status", status}});
  server_->QueueClosed(shared_from_this());
}

void SessionServer::Stream::DeliverClosed() {
  absl::MutexLock delivery(&delivery_mutex_);
  if (phase_ == Phase::kClosed) return;
  if (phase_ == Phase::kOpen) {
    server_->handler_->OnSessionClosed(id_);
    --server_->open_count_;
    server_->metrics_->open.Decrement();
  }
  phase_ = Phase::kClosed;
  server_->ClosedDelivered(this);
}

void SessionServer::Stream::Tick(Instant now) {
  const SessionServerOptions& options = server_->options_;
  bool silent = false;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_) {
      // Closing takes too long: the peer does not read, or is not there. Nothing more can be said.
      const bool cut = !cut_ && !done_ && now - end_time_ > options.close_grace;
      if (cut) context_->TryCancel();
      cut_ |= cut;
      return;
    }
    silent = now - last_received_ > options.silence_max;
    // One tick early, so that the interval is never exceeded.
    const Duration idle_max =
        options.heartbeat_interval - options.heartbeat_interval / kTicksPerHeartbeat;
    if (!silent && accepted_ && !writing_ && now - last_sent_ >= idle_max) Write(v1::Event());
  }
  if (silent) {
    End(EndReason::kSilence, absl::UnavailableError(SilenceMessage(options.silence_max)),
        /*flush=*/false);
  }
}

void SessionServer::Stream::OnReadDone(bool ok) {
  if (!ok) {
    End(EndReason::kPeer, absl::UnavailableError("the router left"), /*flush=*/false);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    last_received_ = Now();
    if (ended_) return;
  }
  if (hello_seen_) {
    HandleCommand();
  } else {
    hello_seen_ = true;
    HandleHello();
  }
  absl::MutexLock lock(&mutex_);
  if (!ended_) StartRead(&incoming_);
}

void SessionServer::Stream::HandleHello() {
  const v1::RouterHello hello = incoming_.hello();
  if (!incoming_.has_hello() || hello.router_incarnation() == 0) {
    End(EndReason::kProtocol,
        absl::InvalidArgumentError("a session starts with hello and a router incarnation"), false);
    return;
  }
  // Held until the handler has answered: a still newer session waits here for its turn.
  absl::MutexLock delivery(&delivery_mutex_);
  if (phase_ == Phase::kClosed) return;
  if (const absl::Status worker = server_->CheckWorker(Now()); !worker.ok()) {
    End(EndReason::kStalled, worker, /*flush=*/false);
    return;
  }
  const absl::StatusOr<std::shared_ptr<Stream>> retired =
      server_->Register(hello, shared_from_this());
  if (!retired.ok()) {
    End(EndReason::kRefused, retired.status(), /*flush=*/false);
    return;
  }
  if (*retired != nullptr) {
    (*retired)->End(EndReason::kRetired,
                    absl::AbortedError("retired by a newer session of the same router"), false);
    (*retired)->DeliverClosed();
  }
  if (ended()) return;
  absl::StatusOr<v1::WorkerHello> answer = server_->handler_->OnSessionOpened(id_, hello);
  if (!answer.ok()) {
    End(EndReason::kRefused, answer.status(), /*flush=*/false);
    return;
  }
  phase_ = Phase::kOpen;
  ++server_->open_count_;
  server_->metrics_->open.Increment();
  server_->metrics_->accepted.Increment();
  LogInfo("session opened", {{"session", Raw(id_)},
                             {"router", absl::StrCat(absl::Hex(hello.router_incarnation()))},
                             {"number", hello.session_number()},
                             {"peer", context_->peer()}});
  v1::Event event;
  *event.mutable_hello() = *std::move(answer);
  absl::MutexLock lock(&mutex_);
  if (ended_) return;
  accepted_ = true;
  Write(std::move(event));
}

void SessionServer::Stream::HandleCommand() {
  switch (incoming_.command_case()) {
    case v1::Command::kPing:
      return;
    case v1::Command::kHello:
      End(EndReason::kProtocol, absl::InvalidArgumentError("hello came twice"), /*flush=*/false);
      return;
    case v1::Command::COMMAND_NOT_SET:
      // Ignoring what a newer router asks for would leave it waiting.
      End(EndReason::kProtocol,
          absl::UnimplementedError("a command that this worker does not know"),
          /*flush=*/false);
      return;
    case v1::Command::kAdmit:
    case v1::Command::kPrefill:
    case v1::Command::kReopen:
    case v1::Command::kCancel:
    case v1::Command::kProbe:
    case v1::Command::kDrain:
    case v1::Command::kMigrate:
      break;
  }
  absl::MutexLock delivery(&delivery_mutex_);
  if (phase_ == Phase::kOpen) server_->handler_->OnCommand(id_, std::move(incoming_));
}

void SessionServer::Stream::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (ok) Advance();
  }
  if (!ok) End(EndReason::kPeer, absl::UnavailableError("the router left"), /*flush=*/false);
}

void SessionServer::Stream::OnDone() {
  {
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }
  server_->Forget(id_);  // May destroy this.
}

SessionServer::SessionServer(SessionHandler* handler, const SessionServerOptions& options)
    : handler_(handler),
      options_(options),
      own_metrics_(options.metrics == nullptr ? std::make_unique<MetricsRegistry>() : nullptr),
      metrics_(std::make_unique<Metrics>(options.metrics == nullptr ? own_metrics_.get()
                                                                    : options.metrics)),
      timer_([this] { Run(); }) {
  BATON_CHECK(handler != nullptr);
}

SessionServer::~SessionServer() {
  Shutdown(absl::UnavailableError("the worker shuts down"));
  timer_.join();
}

void SessionServer::Send(SessionId session, v1::Event event) {
  if (const std::shared_ptr<Stream> stream = Find(session)) stream->Push(std::move(event));
}

void SessionServer::Close(SessionId session, const absl::Status& status) {
  if (const std::shared_ptr<Stream> stream = Find(session)) {
    stream->End(EndReason::kClosed, status, /*flush=*/true);
  }
}

void SessionServer::Shutdown(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (const std::shared_ptr<Stream>& stream : AllStreams()) {
    stream->End(EndReason::kClosed, status, /*flush=*/true);
  }
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &SessionServer::AllDelivered));
}

grpc::ServerBidiReactor<v1::Command, v1::Event>* SessionServer::Session(
    grpc::CallbackServerContext* context) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return new Refusal(absl::UnavailableError("the worker shuts down"));
  if (streams_.size() >= options_.sessions_max) {
    return new Refusal(absl::ResourceExhaustedError("the worker has too many sessions"));
  }
  const SessionId id{++last_session_};
  auto stream = std::make_shared<Stream>(this, id, context);
  streams_[id] = stream;
  ++undelivered_count_;
  return stream.get();
}

std::shared_ptr<SessionServer::Stream> SessionServer::Find(SessionId session) const {
  absl::MutexLock lock(&mutex_);
  const auto found = streams_.find(session);
  return found == streams_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<SessionServer::Stream>> SessionServer::AllStreams() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Stream>> streams;
  for (const auto& [id, stream] : streams_) streams.push_back(stream);
  return streams;
}

absl::StatusOr<std::shared_ptr<SessionServer::Stream>> SessionServer::Register(
    const v1::RouterHello& hello, std::shared_ptr<Stream> stream) {
  absl::MutexLock lock(&mutex_);
  Router& router = routers_[hello.router_incarnation()];
  if (router.stream != nullptr && !router.stream->ended() && hello.dialed() != router.dialed) {
    return absl::FailedPreconditionError(
        absl::StrCat("this router already reaches this worker as ", router.dialed));
  }
  if (router.stream != nullptr && hello.session_number() <= router.session_number) {
    return absl::AbortedError(absl::StrCat("session ", hello.session_number(),
                                           " comes after session ", router.session_number,
                                           " of the same router"));
  }
  router.session_number = hello.session_number();
  router.dialed = hello.dialed();
  return std::exchange(router.stream, std::move(stream));
}

void SessionServer::QueueClosed(std::shared_ptr<Stream> stream) {
  absl::MutexLock lock(&mutex_);
  closed_.push_back(std::move(stream));
}

void SessionServer::ClosedDelivered(const Stream* stream) {
  absl::MutexLock lock(&mutex_);
  --undelivered_count_;
  absl::erase_if(routers_,
                 [stream](const auto& entry) { return entry.second.stream.get() == stream; });
}

void SessionServer::Forget(SessionId session) {
  std::shared_ptr<Stream> last;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  const auto found = streams_.find(session);
  BATON_CHECK(found != streams_.end());
  last = std::move(found->second);
  streams_.erase(found);
}

bool SessionServer::HasWork() const { return !closed_.empty() || AllForgotten(); }
bool SessionServer::AllDelivered() const { return undelivered_count_ == 0; }
bool SessionServer::AllForgotten() const {
  return stopping_ && streams_.empty() && undelivered_count_ == 0;
}

void SessionServer::Run() {
  const absl::Duration tick = absl::FromChrono(options_.heartbeat_interval / kTicksPerHeartbeat);
  bool worked = true;
  for (;;) {
    std::vector<std::shared_ptr<Stream>> closed;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &SessionServer::HasWork), tick);
      if (AllForgotten()) return;
      closed = std::exchange(closed_, {});
    }
    for (const std::shared_ptr<Stream>& stream : closed) stream->DeliverClosed();
    const Instant now = Now();
    const absl::Status worker = CheckWorker(now);
    if (!worker.ok() && worked) LogError("sessions are broken", {{"reason", worker}});
    if (worker.ok() && !worked) LogInfo("sessions are taken again");
    worked = worker.ok();
    TickAll(worker, now);
  }
}

void SessionServer::TickAll(const absl::Status& worker, Instant now) {
  for (const std::shared_ptr<Stream>& stream : AllStreams()) {
    if (!worker.ok()) stream->End(EndReason::kStalled, worker, /*flush=*/true);
    stream->Tick(now);
  }
}

absl::Status SessionServer::CheckWorker(Instant now) const {
  return options_.check ? options_.check(now) : absl::OkStatus();
}

}  // namespace baton
