// For tests of the router's shell: a decode worker that samples by hashing, behind a real gRPC
// server on a free port.
//
// Header-only and linked by tests alone.
#ifndef BATON_ROUTER_FAKE_WORKER_H_
#define BATON_ROUTER_FAKE_WORKER_H_

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/ids.h"
#include "common/rpc/server.h"
#include "common/rpc/session_server.h"

namespace baton {

// What every fake worker samples after these tokens: never an end-of-sequence id of the demo model.
inline TokenId HashToken(const std::vector<TokenId>& tokens) {
  uint64_t hash = 1469598103934665603ull;
  for (const TokenId token : tokens)
    hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211ull;
  return static_cast<TokenId>(300 + (hash >> 20) % 1500);
}

class FakeWorker final : public SessionHandler {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";
    uint64_t incarnation = 1;
    uint32_t vocab_size = 2048;
    std::string fingerprint = "model";
    // Stops after so many tokens of a request and waits for Release; 0: never stops.
    uint32_t hold_after = 0;
    uint32_t event_tokens = 1;  // How many go into one event.
  };

  explicit FakeWorker(Options options) : options_(std::move(options)) {
    sessions_ = std::make_unique<SessionServer>(this, SessionServerOptions{});
    RpcServerOptions rpc;
    rpc.listen = options_.listen;
    absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(rpc, {sessions_.get()});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->SetServing(true);
  }
  ~FakeWorker() override { Die(); }

  const std::string& address() const { return server_->address(); }

  // Breaks all sessions and serves no more.
  void Die() {
    sessions_->Shutdown(absl::UnavailableError("the fake worker died"));
    server_->Shutdown(Duration::zero());
  }
  // Lets held requests go on to their end.
  void Release() {
    absl::MutexLock lock(&mutex_);
    options_.hold_after = 0;
    for (auto& [attempt, sequence] : sequences_) Generate(attempt, &sequence);
    sequences_.clear();
  }
  // What the router has sent. Each waits until `condition` of it holds.
  struct Seen {
    int sessions = 0;
    int admits = 0;
    int cancels = 0;
    v1::Work last;
  };
  template <typename Condition>
  bool Await(const Condition& condition) {
    absl::MutexLock lock(&mutex_);
    const auto holds = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return condition(seen_); };
    return mutex_.AwaitWithTimeout(absl::Condition(&holds), absl::Seconds(20));
  }
  Seen seen() {
    absl::MutexLock lock(&mutex_);
    return seen_;
  }

  absl::StatusOr<v1::WorkerHello> OnSessionOpened(SessionId, const v1::RouterHello&) override {
    {
      absl::MutexLock lock(&mutex_);
      ++seen_.sessions;
    }
    v1::WorkerHello hello;
    hello.set_incarnation(options_.incarnation);
    hello.set_role(v1::ROLE_DECODE);
    hello.set_local_prefill(true);
    hello.set_version("fake");
    hello.mutable_model()->set_model_fingerprint(options_.fingerprint);
    hello.mutable_model()->set_layout_fingerprint(1);
    hello.mutable_model()->set_vocab_size(options_.vocab_size);
    hello.mutable_model()->set_context_tokens(2048);
    hello.mutable_model()->set_architecture("LlamaForCausalLM");
    hello.mutable_model()->set_block_tokens(16);
    return hello;
  }
  void OnCommand(SessionId session, v1::Command command) override {
    absl::MutexLock lock(&mutex_);
    if (command.has_cancel()) {
      ++seen_.cancels;
      sequences_.erase(command.cancel().request());
    }
    if (!command.has_admit()) return;
    ++seen_.admits;
    seen_.last = command.admit().work();
    const v1::Work& work = command.admit().work();
    v1::Event event;
    event.mutable_admitted()->set_request(work.request());
    sessions_->Send(session, event);
    Sequence sequence{.session = session,
                      .tokens = {work.tokens().begin(), work.tokens().end()},
                      .prompt_tokens = work.prompt_tokens(),
                      .total_tokens_max = work.total_tokens_max()};
    if (!Generate(work.request(), &sequence)) sequences_[work.request()] = std::move(sequence);
  }
  void OnSessionClosed(SessionId) override {
    absl::MutexLock lock(&mutex_);
    sequences_.clear();
  }

 private:
  struct Sequence {
    SessionId session{};
    std::vector<TokenId> tokens;
    uint32_t prompt_tokens = 0;
    uint32_t total_tokens_max = 0;
  };

  // Returns whether the sequence has ended.
  bool Generate(uint64_t attempt, Sequence* sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (sequence->tokens.size() < sequence->total_tokens_max) {
      const auto index = static_cast<uint32_t>(sequence->tokens.size()) - sequence->prompt_tokens;
      if (options_.hold_after != 0 && index >= options_.hold_after) return false;
      v1::Event event;
      v1::Tokens::Sequence* said = event.mutable_tokens()->add_sequences();
      said->set_request(attempt);
      for (uint32_t i = 0; i < options_.event_tokens; ++i) {
        if (sequence->tokens.size() == sequence->total_tokens_max) break;
        sequence->tokens.push_back(HashToken(sequence->tokens));
        v1::Token* token = said->add_tokens();
        token->set_index(index + i);
        token->set_id(sequence->tokens.back());
      }
      sessions_->Send(sequence->session, event);
    }
    v1::Event event;
    event.mutable_finished()->set_request(attempt);
    event.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
    sessions_->Send(sequence->session, event);
    return true;
  }

  Options options_;
  absl::Mutex mutex_;
  Seen seen_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Sequence> sequences_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<SessionServer> sessions_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace baton

#endif  // BATON_ROUTER_FAKE_WORKER_H_
