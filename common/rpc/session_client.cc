#include "common/rpc/session_client.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/rpc/backoff.h"
#include "common/rpc/outbox.h"
#include "common/rpc/status_codec.h"

namespace baton {
namespace {

// An idle stream is looked at so many times per heartbeat interval.
constexpr int kTicksPerHeartbeat = 4;

// Null: plaintext.
std::shared_ptr<const TlsFiles::Texts> Certificates(const ChannelOptions& options) {
  return options.tls == nullptr ? nullptr : options.tls->texts();
}

bool StillConnects(grpc::Channel& channel) {
  const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/false);
  return state == GRPC_CHANNEL_CONNECTING || state == GRPC_CHANNEL_TRANSIENT_FAILURE;
}

}  // namespace

// One attempt: one call.
//
// The client's thread makes and destroys it, after OnDone: the last channel of a process may not be
// destroyed by one of gRPC's threads, which would then wait for itself.
class SessionClient::Stream final : public grpc::ClientBidiReactor<v1::Command, v1::Event> {
 public:
  Stream(SessionClient* client, SessionNumber number, const std::shared_ptr<grpc::Channel>& channel)
      : client_(client),
        options_(client->options_),
        number_(number),
        stub_(v1::Worker::NewStub(channel)),
        last_received_(Now()),
        last_sent_(last_received_),
        outbox_(options_.outbox_commands_max, options_.outbox_bytes_max) {}

  SessionNumber number() const { return number_; }

  // Calls the worker and sends hello.
  void Start();
  bool Push(v1::Command&& command);
  // Cancels the call; `status` is what the handler hears. The first call decides.
  void End(const absl::Status& status);
  // Waits for the end of the call, at most `timeout`; returns whether it has.
  bool WaitDone(Duration timeout) const;
  void Tick(Instant now);

  // Both after WaitDone returned true.
  absl::Status end_status() const;
  bool was_up() const;

  // gRPC's reactions.
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  // Hands the message to the handler. An error ends the stream.
  absl::Status Deliver();
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The call ends by itself; its status comes with OnDone.
  void ReleaseHold() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Write(v1::Command&& command) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  SessionClient* const client_;
  const SessionClientOptions& options_;
  const SessionNumber number_;
  const std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  v1::Event incoming_;  // Of the read in progress or its reaction.

  mutable absl::Mutex mutex_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  bool up_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool held_ ABSL_GUARDED_BY(mutex_) = false;  // Operations may be started: OnDone waits.
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  // Why we ended it, or how the call ended.
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
  Instant last_received_ ABSL_GUARDED_BY(mutex_);
  Instant last_sent_ ABSL_GUARDED_BY(mutex_);
  v1::Command outgoing_ ABSL_GUARDED_BY(mutex_);  // Of the write in progress.
  Outbox<v1::Command> outbox_ ABSL_GUARDED_BY(mutex_);
};

void SessionClient::Stream::Start() {
  absl::MutexLock lock(&mutex_);
  if (ended_) {  // Stopped before it began.
    done_ = true;
    return;
  }
  started_ = true;
  held_ = true;
  stub_->async()->Session(&context_, this);
  AddHold();
  v1::Command command;
  v1::RouterHello* hello = command.mutable_hello();
  hello->set_router_incarnation(Raw(options_.router_incarnation));
  hello->set_session_number(Raw(number_));
  hello->set_version(options_.version);
  hello->set_dialed(client_->address_);
  Write(std::move(command));
  StartRead(&incoming_);
  StartCall();
}

void SessionClient::Stream::Write(v1::Command&& command) {
  outgoing_ = std::move(command);
  writing_ = true;
  last_sent_ = Now();
  StartWrite(&outgoing_);
}

bool SessionClient::Stream::Push(v1::Command&& command) {
  absl::MutexLock lock(&mutex_);
  if (!up_ || !held_) return false;
  if (!outbox_.Push(std::move(command))) {
    EndLocked(
        absl::ResourceExhaustedError("the worker does not read its commands: the backlog is full"));
    return false;
  }
  if (!writing_) Write(outbox_.Pop());
  return true;
}

void SessionClient::Stream::End(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  EndLocked(status);
}

void SessionClient::Stream::EndLocked(const absl::Status& status) {
  if (!ended_) {
    ended_ = true;
    end_status_ = status;
  }
  outbox_.Clear();
  if (started_ && !done_) context_.TryCancel();
  ReleaseHold();
}

void SessionClient::Stream::ReleaseHold() {
  if (std::exchange(held_, false)) RemoveHold();
}

bool SessionClient::Stream::WaitDone(Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&done_), absl::FromChrono(timeout));
}

absl::Status SessionClient::Stream::end_status() const {
  absl::MutexLock lock(&mutex_);
  return end_status_;
}

bool SessionClient::Stream::was_up() const {
  absl::MutexLock lock(&mutex_);
  return up_;
}

void SessionClient::Stream::Tick(Instant now) {
  absl::MutexLock lock(&mutex_);
  if (done_) return;
  if (now - last_received_ > options_.silence_max) {
    // Also when the call should end by itself but does not.
    EndLocked(absl::UnavailableError(
        absl::StrCat("the worker was silent for ", ToMilliseconds(options_.silence_max), " ms")));
    return;
  }
  // One tick early, so that the interval is never exceeded.
  const Duration idle_max =
      options_.heartbeat_interval - options_.heartbeat_interval / kTicksPerHeartbeat;
  if (held_ && up_ && !writing_ && now - last_sent_ >= idle_max) {
    v1::Command ping;
    ping.mutable_ping();
    Write(std::move(ping));
  }
}

void SessionClient::Stream::OnReadDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    if (!ok) {
      ReleaseHold();
      return;
    }
    last_received_ = Now();
    if (ended_) return;
  }
  const absl::Status status = Deliver();
  absl::MutexLock lock(&mutex_);
  if (!status.ok()) EndLocked(status);
  if (!ended_) StartRead(&incoming_);
}

absl::Status SessionClient::Stream::Deliver() {
  switch (incoming_.event_case()) {
    case v1::Event::EVENT_NOT_SET:  // A heartbeat.
      return absl::OkStatus();
    case v1::Event::kHello: {
      {
        absl::MutexLock lock(&mutex_);
        if (up_) return absl::InternalError("the worker said hello twice");
        up_ = true;
      }
      return client_->handler_->OnUp(number_, incoming_.hello());
    }
    case v1::Event::kLoad:
    case v1::Event::kAdmitted:
    case v1::Event::kRejected:
    case v1::Event::kFirstToken:
    case v1::Event::kPrefillDone:
    case v1::Event::kPrefillFailed:
    case v1::Event::kTokens:
    case v1::Event::kFinished:
    case v1::Event::kProbeResult:
    case v1::Event::kDraining:
    case v1::Event::kDrained:
    case v1::Event::kFailed:
    case v1::Event::kAlreadyCommitted:
    case v1::Event::kMigrated:
    case v1::Event::kMigrateFailed:
      break;
  }
  if (!was_up()) return absl::InternalError("the worker did not start with hello");
  return client_->handler_->OnEvent(number_, std::move(incoming_));
}

void SessionClient::Stream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) {
    // The call is ending: its status comes with OnDone.
    outbox_.Clear();
    ReleaseHold();
  } else if (held_ && !outbox_.empty()) {
    Write(outbox_.Pop());
  }
}

void SessionClient::Stream::OnDone(const grpc::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (!ended_) {
    ended_ = true;
    end_status_ = status.ok() ? absl::UnavailableError("the worker ended the session")
                              : FromGrpcStatus(status);
  }
  done_ = true;
}

SessionClient::SessionClient(const std::string& address, SessionClientHandler* handler,
                             const SessionClientOptions& options)
    : address_(address), handler_(handler), options_(options), thread_([this] { Run(); }) {}

SessionClient::~SessionClient() { Stop(); }

bool SessionClient::Send(SessionNumber session, v1::Command command) {
  absl::MutexLock lock(&mutex_);
  Stream* const stream = Find(session);
  return stream != nullptr && stream->Push(std::move(command));
}

void SessionClient::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (stream_ != nullptr) stream_->End(absl::CancelledError("stopped"));
  }
  if (thread_.joinable()) thread_.join();
}

SessionClient::Stream* SessionClient::Find(SessionNumber session) const {
  return stream_ != nullptr && stream_->number() == session ? stream_ : nullptr;
}

void SessionClient::Run() {
  Backoff backoff(options_.backoff_min, options_.backoff_max, options_.seed);
  // A channel that was connected serves one attempt, so that a peer that hangs does not spoil the
  // next one. One that was not goes on trying: gRPC 1.51 never closes a connection whose channel is
  // destroyed while the peer still owes its first words.
  std::shared_ptr<grpc::Channel> channel;
  std::shared_ptr<const TlsFiles::Texts> certificates;  // Of the channel.
  // Forever by design: a worker may come back at any time. Stop ends it.
  SessionCounter& numbers = options_.numbers == nullptr ? own_numbers_ : *options_.numbers;
  for (;;) {
    if (channel == nullptr || certificates != Certificates(options_.channel)) {
      certificates = Certificates(options_.channel);
      channel = CreateChannel(address_, options_.channel);
    }
    const absl::StatusOr<Duration> wait = RunAttempt(numbers.Next(), channel, &backoff);
    if (!wait.ok()) return;
    if (!StillConnects(*channel)) channel.reset();
    if (!WaitForNextAttempt(*wait, channel.get())) return;
  }
}

absl::StatusOr<Duration> SessionClient::RunAttempt(SessionNumber number,
                                                   const std::shared_ptr<grpc::Channel>& channel,
                                                   Backoff* backoff) {
  Stream stream(this, number, channel);
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("stopped");
    stream_ = &stream;
  }
  stream.Start();
  while (!stream.WaitDone(tick())) stream.Tick(Now());
  {
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
    if (stopping_) return absl::CancelledError("stopped");
  }
  const absl::Status status = stream.end_status();
  handler_->OnDown(number, status);
  if (stream.was_up()) backoff->Reset();
  return absl::IsFailedPrecondition(status) ? options_.refused_backoff : backoff->Next();
}

bool SessionClient::WaitForNextAttempt(Duration wait, grpc::Channel* connecting) {
  for (const Instant end = Now() + wait; Now() < end;) {
    if (connecting != nullptr && !StillConnects(*connecting)) break;  // There is something to try.
    const Duration pause = std::min(tick(), end - Now());
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(pause))) return false;
  }
  absl::MutexLock lock(&mutex_);
  return !stopping_;
}

Duration SessionClient::tick() const { return options_.heartbeat_interval / kTicksPerHeartbeat; }

}  // namespace baton
