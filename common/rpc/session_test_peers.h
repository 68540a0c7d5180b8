// Both ends of a session as tests need them: handlers that record, a worker that can be killed, and
// a router that says what the test wants.
#ifndef BATON_COMMON_RPC_SESSION_TEST_PEERS_H_
#define BATON_COMMON_RPC_SESSION_TEST_PEERS_H_

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/rpc/server.h"
#include "common/rpc/session_client.h"
#include "common/rpc/session_server.h"
#include "common/rpc/status_codec.h"

namespace baton {

inline constexpr absl::Duration kPatience = absl::Seconds(30);
inline constexpr uint64_t kRouter = 77;

// What happened, in order, as short texts that a test can wait for.
class Journal {
 public:
  void Add(const std::string& entry) {
    absl::MutexLock lock(&mutex_);
    entries_.push_back(entry);
  }
  std::vector<std::string> All() const {
    absl::MutexLock lock(&mutex_);
    return entries_;
  }
  // Whether an entry that starts with `prefix` appears in time, for the `count`th time.
  [[nodiscard]] bool Await(const std::string& prefix, size_t count = 1) const {
    const auto seen = [this, &prefix, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      size_t found = 0;
      for (const std::string& entry : entries_) found += entry.starts_with(prefix);
      return found >= count;
    };
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&seen), kPatience);
  }
  [[nodiscard]] size_t Count(const std::string& prefix) const {
    absl::MutexLock lock(&mutex_);
    size_t found = 0;
    for (const std::string& entry : entries_) found += entry.starts_with(prefix);
    return found;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<std::string> entries_ ABSL_GUARDED_BY(mutex_);
};

class RecordingHandler final : public SessionHandler {
 public:
  absl::StatusOr<v1::WorkerHello> OnSessionOpened(SessionId session,
                                                  const v1::RouterHello& hello) override {
    journal.Add(absl::StrCat("opened ", Raw(session), " number ", hello.session_number()));
    if (on_opened) on_opened(session);
    if (!refusal.ok()) return refusal;
    v1::WorkerHello answer;
    answer.set_incarnation(4711);
    return answer;
  }
  void OnCommand(SessionId session, v1::Command command) override {
    journal.Add(absl::StrCat("command ", Raw(session), " cancel ", command.cancel().request()));
    if (on_command) on_command(session, command);
  }
  void OnSessionClosed(SessionId session) override {
    journal.Add(absl::StrCat("closed ", Raw(session)));
  }

  Journal journal;
  absl::Status refusal;  // Constant while a server runs, as are the next two.
  std::function<void(SessionId)> on_opened;
  std::function<void(SessionId, const v1::Command&)> on_command;
};

class RecordingClientHandler final : public SessionClientHandler {
 public:
  absl::Status OnUp(SessionNumber session, const v1::WorkerHello& hello) override {
    journal.Add(absl::StrCat("up ", Raw(session), " worker ", hello.incarnation()));
    if (on_up) on_up(session);
    return no_room_for == session ? absl::ResourceExhaustedError("no room") : absl::OkStatus();
  }
  absl::Status OnEvent(SessionNumber session, v1::Event event) override {
    std::string what = "event";
    for (const auto& sequence : event.tokens().sequences()) {
      for (const auto& token : sequence.tokens()) absl::StrAppend(&what, " ", token.index());
    }
    if (event.has_load()) absl::StrAppend(&what, " load ", event.load().load().blocks_free());
    journal.Add(absl::StrCat("event ", Raw(session), what.substr(5)));
    return absl::OkStatus();
  }
  void OnDown(SessionNumber session, const absl::Status& status) override {
    journal.Add(absl::StrCat("down ", Raw(session), " ", status.ToString()));
  }

  Journal journal;
  std::function<void(SessionNumber)> on_up;  // Constant while a client runs, as is the next.
  SessionNumber no_room_for{};
};

inline SessionServerOptions FastServerOptions() {
  SessionServerOptions options;
  options.heartbeat_interval = std::chrono::milliseconds(40);
  options.silence_max = std::chrono::seconds(20);
  options.close_grace = std::chrono::milliseconds(100);
  return options;
}

inline SessionClientOptions FastClientOptions() {
  SessionClientOptions options;
  options.router_incarnation = Incarnation{kRouter};
  options.heartbeat_interval = std::chrono::milliseconds(40);
  options.silence_max = std::chrono::seconds(20);
  options.backoff_min = std::chrono::milliseconds(1);
  options.backoff_max = std::chrono::milliseconds(20);
  options.refused_backoff = std::chrono::milliseconds(50);
  return options;
}

// A worker's server with a session service.
class TestWorker {
 public:
  explicit TestWorker(SessionHandler* handler,
                      const SessionServerOptions& options = FastServerOptions(),
                      const std::string& listen = "127.0.0.1:0")
      : sessions_(handler, options) {
    RpcServerOptions server_options;
    server_options.listen = listen;
    auto server = RpcServer::Start(server_options, {&sessions_});
    BATON_CHECK_OK(server.status());
    server_ = *std::move(server);
  }
  ~TestWorker() {
    sessions_.Shutdown(absl::UnavailableError("test ends"));
    server_.reset();
  }

  SessionServer& sessions() { return sessions_; }
  const std::string& address() const { return server_->address(); }
  // Ends all calls without a word, as a crash does.
  void Kill() { server_->Shutdown(Duration::zero()); }

 private:
  SessionServer sessions_;
  std::unique_ptr<RpcServer> server_;
};

// A router that does what the test says: a blocking call on the wire.
class RawRouter {
 public:
  explicit RawRouter(const std::string& address)
      : stub_(v1::Worker::NewStub(CreateChannelOfOneWindow(address))) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    stream_ = stub_->Session(&context_);
  }
  ~RawRouter() {
    context_.TryCancel();
    if (!finished_) Finish().IgnoreError();
  }

  void Hello(uint64_t session_number, uint64_t incarnation = kRouter) {
    v1::Command command;
    command.mutable_hello()->set_router_incarnation(incarnation);
    command.mutable_hello()->set_session_number(session_number);
    stream_->Write(command);
  }
  void Write(const v1::Command& command) { stream_->Write(command); }
  std::optional<v1::Event> Read() {
    v1::Event event;
    return stream_->Read(&event) ? std::optional(event) : std::nullopt;
  }
  absl::Status ReadToEnd() {
    while (Read()) {
    }
    return Finish();
  }
  absl::Status Finish() {
    finished_ = true;
    return FromGrpcStatus(stream_->Finish());
  }

 private:
  // What is not read stays with the sender, but for 64 KiB: gRPC must not find, when it measures
  // the connection, that more would do.
  static std::shared_ptr<grpc::Channel> CreateChannelOfOneWindow(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }

  const std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::Command, v1::Event>> stream_;
  bool finished_ = false;
};

inline v1::Command CancelCommand(uint64_t request) {
  v1::Command command;
  command.mutable_cancel()->set_request(request);
  return command;
}

inline v1::Event LoadEvent(uint32_t blocks_free) {
  v1::Event event;
  event.mutable_load()->mutable_load()->set_blocks_free(blocks_free);
  return event;
}

inline v1::Event TokensEvent(uint32_t index, int top_logprobs = 0) {
  v1::Event event;
  v1::Tokens::Sequence* sequence = event.mutable_tokens()->add_sequences();
  sequence->set_request(1);
  v1::Token* token = sequence->add_tokens();
  token->set_index(index);
  for (int i = 0; i < top_logprobs; ++i) token->add_top_logprobs()->set_token(i);
  return event;
}

}  // namespace baton

#endif  // BATON_COMMON_RPC_SESSION_TEST_PEERS_H_
