// For tests of RouterCore: drives it with a clock of its own, makes hellos and events, and sorts
// the actions by worker and by request while checking what must hold for every run.
//
// Header-only and linked by tests alone.
#ifndef BATON_ROUTER_CORE_DRIVER_H_
#define BATON_ROUTER_CORE_DRIVER_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/router_core.h"

namespace baton {

// Text of token t is "<t>"; the stop string is a token's whole text.
class PlainText final : public TextStream {
 public:
  explicit PlainText(std::string stop = "") : stop_(std::move(stop)) {}
  Step Feed(TokenId token) override {
    const std::string text = absl::StrCat("<", token, ">");
    if (text == stop_) return {"", stop_};
    return {text, std::nullopt};
  }
  Step Flush() override { return {}; }

 private:
  const std::string stop_;
};

// What came out for one request.
struct Outcome {
  bool accepted = false;
  std::vector<TokenId> tokens;
  std::string text;
  std::vector<Duration> pauses;
  std::optional<Finish> finish;
  absl::StatusCode code() const { return finish ? finish->status.code() : absl::StatusCode::kOk; }
};

class CoreDriver {
 public:
  explicit CoreDriver(CoreOptions options = {}) : core(std::move(options)) {}

  RouterCore core;
  Instant now{std::chrono::seconds(1000)};
  std::map<WorkerId, std::deque<v1::Command>> commands;  // Sent and not yet looked at.
  std::map<RequestId, Outcome> outcomes;
  std::map<RequestId, uint32_t> first_index;  // Where the client's indices start; 0 if absent.

  static v1::WorkerHello Hello(v1::Role role, uint64_t incarnation, bool local_prefill = false) {
    v1::WorkerHello hello;
    hello.set_incarnation(incarnation);
    hello.set_role(role);
    hello.set_local_prefill(local_prefill);
    hello.set_transfer_address(absl::StrCat("address of ", incarnation));
    hello.mutable_model()->set_model_fingerprint("model");
    hello.mutable_model()->set_layout_fingerprint(7);
    hello.mutable_model()->set_numerics("f32");
    hello.mutable_model()->set_block_tokens(16);
    return hello;
  }

  WorkerId AddUp(v1::Role role, bool local_prefill = false) {
    const WorkerId id = core.AddWorker(absl::StrCat("worker", next_incarnation_), role);
    Up(id, Hello(role, next_incarnation_++, local_prefill));
    return id;
  }
  void Up(WorkerId id, const v1::WorkerHello& hello) {
    core.OnWorkerUp(id, hello, now);
    Collect();
  }
  void Down(WorkerId id) {
    core.OnWorkerDown(id, absl::UnavailableError("the connection broke"), now);
    commands[id].clear();
    Collect();
  }
  void Event(WorkerId id, const v1::Event& event) {
    core.OnWorkerEvent(id, event, now);
    Collect();
  }
  void Advance(Duration duration) {
    now += duration;
    core.OnTick(now);
    Collect();
  }
  // Answers every probe that is out.
  void AnswerProbes(bool ok = true) {
    for (auto& [id, queue] : commands) {
      std::vector<uint64_t> probes;
      std::erase_if(queue, [&probes](const v1::Command& command) {
        if (command.has_probe()) probes.push_back(command.probe().probe());
        return command.has_probe();
      });
      for (const uint64_t probe : probes) {
        v1::Event event;
        event.mutable_probe_result()->set_probe(probe);
        event.mutable_probe_result()->set_ok(ok);
        event.mutable_probe_result()->set_message(ok ? "" : "no path");
        Event(id, event);
      }
    }
  }

  NewRequest Make(uint32_t prompt_tokens, uint32_t max_tokens) {
    NewRequest request;
    request.id = RequestId{next_request_++};
    request.client_request_id = absl::StrCat("r", Raw(request.id));
    for (uint32_t i = 0; i < prompt_tokens; ++i) {
      request.tokens.push_back(static_cast<TokenId>(100 + i));
    }
    request.prompt_tokens = prompt_tokens;
    request.total_tokens_max = prompt_tokens + max_tokens;
    request.sampling.set_seed(42);
    request.stopping.add_stop_token_ids(2);
    request.received = now;
    request.text = std::make_unique<PlainText>();
    return request;
  }
  RequestId Submit(NewRequest request) {
    const RequestId id = request.id;
    outcomes[id];
    first_index[id] = static_cast<uint32_t>(request.tokens.size()) - request.prompt_tokens;
    core.OnRequest(std::move(request), now);
    Collect();
    return id;
  }
  RequestId Ask(uint32_t prompt_tokens = 4, uint32_t max_tokens = 8) {
    return Submit(Make(prompt_tokens, max_tokens));
  }
  void Cancel(RequestId id) {
    core.OnCancel(id, now);
    Collect();
  }
  void EndAll(const absl::Status& status) {
    core.EndAll(status, now);
    Collect();
  }

  // The next command for the worker; one that is not set if there is none.
  v1::Command Next(WorkerId id) {
    auto& queue = commands[id];
    if (queue.empty()) return v1::Command();
    v1::Command command = std::move(queue.front());
    queue.pop_front();
    return command;
  }
  bool Idle(WorkerId id) { return commands[id].empty(); }

  // Events of workers about the attempt.
  void Admitted(WorkerId worker, uint64_t attempt, uint32_t epoch = 1) {
    v1::Event event;
    event.mutable_admitted()->set_request(attempt);
    event.mutable_admitted()->mutable_ticket()->set_epoch(epoch);
    event.mutable_admitted()->mutable_ticket()->set_lease(attempt);
    Event(worker, event);
  }
  void AdmittedLocal(WorkerId worker, uint64_t attempt, uint32_t cached_tokens = 0) {
    v1::Event event;
    event.mutable_admitted()->set_request(attempt);
    event.mutable_admitted()->set_cached_tokens(cached_tokens);
    Event(worker, event);
  }
  void Rejected(WorkerId worker, uint64_t attempt, absl::StatusCode code) {
    v1::Event event;
    event.mutable_rejected()->set_request(attempt);
    event.mutable_rejected()->set_code(static_cast<int32_t>(code));
    event.mutable_rejected()->set_message("not now");
    Event(worker, event);
  }
  void FirstToken(WorkerId worker, uint64_t attempt, uint32_t index, TokenId token,
                  uint32_t epoch = 1, v1::FinishReason terminal = v1::FINISH_REASON_UNSPECIFIED,
                  uint32_t cached_tokens = 0) {
    v1::Event event;
    event.mutable_first_token()->set_request(attempt);
    event.mutable_first_token()->set_epoch(epoch);
    event.mutable_first_token()->mutable_token()->set_index(index);
    event.mutable_first_token()->mutable_token()->set_id(token);
    event.mutable_first_token()->set_terminal(terminal);
    event.mutable_first_token()->set_cached_tokens(cached_tokens);
    Event(worker, event);
  }
  void PrefillDone(WorkerId worker, uint64_t attempt, uint32_t epoch = 1) {
    v1::Event event;
    event.mutable_prefill_done()->set_request(attempt);
    event.mutable_prefill_done()->set_epoch(epoch);
    Event(worker, event);
  }
  void PrefillFailed(WorkerId worker, uint64_t attempt, bool retryable, bool transfer,
                     uint32_t epoch = 1, absl::StatusCode code = absl::StatusCode::kInternal) {
    v1::Event event;
    event.mutable_prefill_failed()->set_request(attempt);
    event.mutable_prefill_failed()->set_epoch(epoch);
    event.mutable_prefill_failed()->set_retryable(retryable);
    event.mutable_prefill_failed()->set_transfer(transfer);
    event.mutable_prefill_failed()->set_code(static_cast<int32_t>(code));
    event.mutable_prefill_failed()->set_message("it broke");
    Event(worker, event);
  }
  void Tokens(WorkerId worker, uint64_t attempt, uint32_t index, std::vector<TokenId> tokens,
              uint32_t epoch = 1) {
    v1::Event event;
    v1::Tokens::Sequence* sequence = event.mutable_tokens()->add_sequences();
    sequence->set_request(attempt);
    sequence->set_epoch(epoch);
    for (const TokenId token : tokens) {
      sequence->add_tokens()->set_index(index++);
      sequence->mutable_tokens(sequence->tokens_size() - 1)->set_id(token);
    }
    Event(worker, event);
  }
  void Finished(WorkerId worker, uint64_t attempt, v1::FinishReason reason) {
    v1::Event event;
    event.mutable_finished()->set_request(attempt);
    event.mutable_finished()->set_reason(reason);
    Event(worker, event);
  }
  void Failed(WorkerId worker, uint64_t attempt, absl::StatusCode code, bool retryable) {
    v1::Event event;
    event.mutable_failed()->set_request(attempt);
    event.mutable_failed()->set_code(static_cast<int32_t>(code));
    event.mutable_failed()->set_message("gave up");
    event.mutable_failed()->set_retryable(retryable);
    Event(worker, event);
  }
  void AlreadyCommitted(WorkerId worker, uint64_t attempt) {
    v1::Event event;
    event.mutable_already_committed()->set_request(attempt);
    Event(worker, event);
  }

  void Collect() {
    for (Action& action : core.TakeActions()) {
      if (auto* send = std::get_if<SendCommand>(&action)) {
        const WorkerEntry* worker = core.workers().Find(send->worker);
        ASSERT_NE(worker, nullptr);
        EXPECT_TRUE(worker->serving()) << "a command to a worker without a session";
        CheckAsked(send->command);
        commands[send->worker].push_back(std::move(send->command));
      } else if (const auto* accept = std::get_if<Accept>(&action)) {
        Outcome& outcome = outcomes[accept->request];
        EXPECT_FALSE(outcome.accepted || outcome.finish.has_value());
        outcome.accepted = true;
      } else if (auto* emit = std::get_if<Emit>(&action)) {
        Outcome& outcome = outcomes[emit->request];
        EXPECT_FALSE(outcome.finish.has_value()) << "tokens after the end";
        for (const v1::Token& token : emit->delta.tokens()) {
          EXPECT_EQ(token.index(), first_index[emit->request] + outcome.tokens.size());
          outcome.tokens.push_back(token.id());
        }
        outcome.text += emit->delta.text();
        if (emit->pause.has_value()) outcome.pauses.push_back(*emit->pause);
      } else if (auto* finish = std::get_if<Finish>(&action)) {
        Outcome& outcome = outcomes[finish->request];
        EXPECT_FALSE(outcome.finish.has_value()) << "a request ended twice";
        outcome.finish = std::move(*finish);
      }
    }
  }

 private:
  // Nobody is asked to work for a request that has ended.
  void CheckAsked(const v1::Command& command) {
    uint64_t attempt = 0;
    if (command.has_admit()) {
      attempt = command.admit().work().request();
      owner_[attempt] = command.admit().work().client_request_id();
    } else if (command.has_prefill()) {
      attempt = command.prefill().work().request();
      owner_[attempt] = command.prefill().work().client_request_id();
    } else if (command.has_reopen()) {
      attempt = command.reopen().request();
    } else {
      return;
    }
    for (const auto& [id, outcome] : outcomes) {
      if (absl::StrCat("r", Raw(id)) != owner_[attempt]) continue;
      EXPECT_FALSE(outcome.finish.has_value()) << "work for a request that has ended";
    }
  }

  std::map<uint64_t, std::string> owner_;  // By attempt.
  uint64_t next_incarnation_ = 1;
  uint64_t next_request_ = 1;
};

}  // namespace baton

#endif  // BATON_ROUTER_CORE_DRIVER_H_
