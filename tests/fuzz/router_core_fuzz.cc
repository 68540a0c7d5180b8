// Events as any worker may send them to the router, among answers that make sense, clients that
// come and go, and sessions that break.
//
// A client sees tokens of the vocabulary strictly by index and one end, which the tokens bear out;
// only workers with a session are asked, and only for what they can do; at the end nothing is left.
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "router/router_core.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/wire_message.h"

namespace baton {
namespace {

constexpr uint32_t kVocabSize = 97;
constexpr TokenId kStopToken = 2;
constexpr size_t kActsMax = 300;
constexpr size_t kRequestsMax = 24;

// Text of token t is "<t>"; token 3 is the stop string.
class PlainText final : public TextStream {
 public:
  Step Feed(TokenId token) override {
    if (token == 3) return {"", "<3>"};
    return {absl::StrCat("<", token, ">"), std::nullopt};
  }
  Step Flush() override { return {}; }
};

struct Client {
  std::vector<TokenId> tokens;
  uint32_t prompt_tokens = 0;
  uint32_t total_tokens_max = 0;
  bool open_ended = false;  // It may end by length earlier, where the KV caches do.
  bool ended = false;
};

class World {
 public:
  explicit World(FuzzInput input) : input_(input), core_(Options()) {
    for (const v1::Role role : {v1::ROLE_PREFILL, v1::ROLE_DECODE, v1::ROLE_DECODE}) AddUp(role);
  }

  void Run() {
    for (size_t act = 0; act < kActsMax && !input_.empty(); ++act) {
      Act();
      Collect();
    }
    core_.EndAll(absl::UnavailableError("over"), now_);
    Collect();
    for (const auto& [id, client] : clients_) BATON_CHECK(client.ended);
    BATON_CHECK(core_.request_count() == 0 && core_.attempt_count() == 0);
    BATON_CHECK(core_.queued_count() == 0 && core_.queued_tokens() == 0);
    for (const auto& [id, worker] : core_.workers().all()) {
      BATON_CHECK(worker.attempts == 0 && worker.prefill_tokens == 0);
    }
    (void)core_.Cluster();
  }

 private:
  static CoreOptions Options() {
    CoreOptions options;
    options.cluster.vocab_size = kVocabSize;
    options.client_buffer_bytes_max = 256;
    return options;
  }

  void Act() {
    switch (input_.Below(12)) {
      case 0:
      case 1:
        core_.OnWorkerEvent(Worker(), ReadMessage<v1::Event>(input_), now_);
        break;
      case 2:
      case 3:
      case 4:
        Answer(Worker());
        break;
      case 5:
      case 6:
        SayTokens(Worker());
        break;
      case 7:
        Ask();
        break;
      case 8:
        now_ += std::chrono::milliseconds(input_.Byte() * 10);
        core_.OnTick(now_);
        break;
      case 9:
        Leave();
        break;
      case 10:
        BreakSession(Worker());
        break;
      case 11:
        Rare();
        break;
    }
  }

  WorkerId Worker() { return ids_[input_.Below(static_cast<uint32_t>(ids_.size()))]; }

  void AddUp(v1::Role role) {
    const WorkerId id = core_.AddWorker(absl::StrCat("worker", next_incarnation_), role);
    ids_.push_back(id);
    Up(id, role, next_incarnation_++);
  }
  void Up(WorkerId id, v1::Role role, uint64_t incarnation) {
    v1::WorkerHello hello;
    hello.set_incarnation(incarnation);
    hello.set_role(role);
    hello.set_local_prefill(role == v1::ROLE_DECODE);
    hello.mutable_model()->set_model_fingerprint("model");
    hello.mutable_model()->set_vocab_size(kVocabSize);
    hello.mutable_model()->set_block_tokens(16);
    core_.OnWorkerUp(id, hello, now_);
    Collect();
  }

  void Ask() {
    if (clients_.size() >= kRequestsMax) return;
    NewRequest request;
    request.id = RequestId{next_request_++};
    const uint32_t prompt = 1 + input_.Below(20);
    const uint32_t given = input_.Below(3);
    for (uint32_t i = 0; i < prompt + given; ++i) {
      request.tokens.push_back(static_cast<TokenId>(10 + i));
    }
    request.prompt_tokens = prompt;
    request.total_tokens_max = prompt + given + input_.Below(8);
    request.open_ended = input_.Below(2) == 0;
    request.priority = static_cast<int32_t>(input_.Below(3));
    request.sampling.set_seed(1);
    request.stopping.add_stop_token_ids(kStopToken);
    request.received = now_;
    if (input_.Below(3) == 0) request.deadline = now_ + std::chrono::milliseconds(input_.Byte());
    request.text = std::make_unique<PlainText>();
    clients_[request.id] = {.tokens = request.tokens,
                            .prompt_tokens = prompt,
                            .total_tokens_max = request.total_tokens_max,
                            .open_ended = request.open_ended};
    core_.OnRequest(std::move(request), now_);
  }

  void Leave() {
    const RequestId id{uint64_t{1} + input_.Byte()};
    if (input_.Below(2) == 0) {
      core_.OnCancel(id, now_);
    } else {
      core_.OnWritten(id, input_.Byte());
    }
  }

  void BreakSession(WorkerId id) {
    core_.OnWorkerDown(id, absl::UnavailableError("the connection broke"), now_);
    commands_[id].clear();
    Collect();
    // Back comes the same process, the next one, or nobody.
    const WorkerEntry& worker = *core_.workers().Find(id);
    const uint32_t next = input_.Below(4);
    if (next < 2) Up(id, worker.role, next == 0 ? worker.hello.incarnation() : next_incarnation_++);
    if (next != 0 || worker.told_to_drain != worker.incarnation()) return;
    BATON_CHECK(worker.draining && worker.state != WorkerState::kReady);
  }

  void Rare() {
    const WorkerId id = Worker();
    switch (input_.Below(6)) {
      case 0:
        core_.OnWorkerUp(id, ReadMessage<v1::WorkerHello>(input_), now_);
        break;
      case 1:
        if (ids_.size() < 6) AddUp(input_.Below(2) == 0 ? v1::ROLE_PREFILL : v1::ROLE_DECODE);
        break;
      case 2:
        if (ids_.size() <= 1) break;
        core_.OnWorkerDown(id, absl::UnavailableError("its name is gone"), now_);
        Collect();
        core_.RemoveWorker(id);
        std::erase(ids_, id);
        break;
      case 3:
        core_.Drain();
        break;
      case 4:
        (void)core_.Cluster();
        break;
      case 5:
        (void)core_.DrainWorker(core_.workers().Find(id)->address, now_);
        break;
    }
  }

  // --- Workers that make sense ------------------------------------------------------------------

  void Answer(WorkerId id) {
    auto& queue = commands_[id];
    if (queue.empty()) return;
    const v1::Command command = std::move(queue.front());
    queue.pop_front();
    v1::Event event;
    switch (command.command_case()) {
      case v1::Command::kProbe:
        event.mutable_probe_result()->set_probe(command.probe().probe());
        event.mutable_probe_result()->set_ok(input_.Below(4) != 0);
        break;
      case v1::Command::kAdmit:
        Admit(command.admit().work().request(), command.admit().local_prefill(), event);
        break;
      case v1::Command::kReopen:
        Admit(command.reopen().request(), command.reopen().local_prefill(), event);
        break;
      case v1::Command::kPrefill:
        Prefill(command.prefill(), event);
        break;
      case v1::Command::kMigrate:
        event.mutable_migrated()->set_request(command.migrate().request());
        event.mutable_migrated()->set_nonce(command.migrate().ticket().nonce_low());
        break;
      case v1::Command::kHello:
      case v1::Command::kPing:
      case v1::Command::kCancel:
      case v1::Command::kDrain:
      case v1::Command::COMMAND_NOT_SET:
        return;
    }
    core_.OnWorkerEvent(id, event, now_);
  }

  void Admit(uint64_t attempt, bool local, v1::Event& event) {
    if (input_.Below(5) == 0) {
      event.mutable_rejected()->set_request(attempt);
      event.mutable_rejected()->set_code(static_cast<int32_t>(input_.Below(18)));
      return;
    }
    event.mutable_admitted()->set_request(attempt);
    if (local) return;
    event.mutable_admitted()->mutable_ticket()->set_epoch(1);
    event.mutable_admitted()->mutable_ticket()->set_nonce_low(next_nonce_++);
  }

  void Prefill(const v1::Prefill& prefill, v1::Event& event) {
    const v1::Work& work = prefill.work();
    if (input_.Below(4) == 0) {
      event.mutable_prefill_failed()->set_request(work.request());
      // Sometimes of an epoch that is over.
      event.mutable_prefill_failed()->set_epoch(prefill.ticket().epoch() - input_.Below(8) / 7);
      event.mutable_prefill_failed()->set_code(static_cast<int32_t>(input_.Below(18)));
      event.mutable_prefill_failed()->set_retryable(input_.Below(2) == 0);
      event.mutable_prefill_failed()->set_transfer(input_.Below(2) == 0);
      return;
    }
    v1::FirstToken* first = event.mutable_first_token();
    first->set_request(work.request());
    first->set_epoch(prefill.ticket().epoch());
    first->mutable_token()->set_id(static_cast<int32_t>(input_.Below(kVocabSize + 1)));
    first->mutable_token()->set_index(static_cast<uint32_t>(work.tokens_size()) -
                                      work.prompt_tokens());
    if (input_.Below(4) == 0) first->set_terminal(static_cast<v1::FinishReason>(input_.Below(4)));
  }

  // Of the newest attempts, whoever they are with.
  void SayTokens(WorkerId id) {
    v1::Event event;
    v1::Tokens::Sequence* sequence = event.mutable_tokens()->add_sequences();
    sequence->set_request(1 + input_.Byte());
    sequence->set_epoch(1);
    uint32_t index = input_.Below(8);
    for (uint32_t count = 1 + input_.Below(3); count > 0; --count) {
      v1::Token* token = sequence->add_tokens();
      token->set_index(index++);
      token->set_id(static_cast<int32_t>(input_.Below(kVocabSize)));
    }
    core_.OnWorkerEvent(id, event, now_);
  }

  // --- What comes out ---------------------------------------------------------------------------

  void Collect() {
    for (Action& action : core_.TakeActions()) {
      if (auto* send = std::get_if<SendCommand>(&action)) {
        const WorkerEntry* worker = core_.workers().Find(send->worker);
        BATON_CHECK(worker != nullptr && worker->connected);
        BATON_CHECK(worker->serving() || send->command.has_drain());
        CheckCommand(*worker, send->command);
        commands_[send->worker].push_back(std::move(send->command));
      } else if (auto* emit = std::get_if<Emit>(&action)) {
        Show(clients_.at(emit->request), emit->delta);
      } else if (auto* finish = std::get_if<Finish>(&action)) {
        End(clients_.at(finish->request), *finish);
      }
    }
  }

  static void CheckCommand(const WorkerEntry& worker, const v1::Command& command) {
    const bool decode = worker.role == v1::ROLE_DECODE;
    BATON_CHECK(!command.has_admit() || decode);
    BATON_CHECK(!command.has_reopen() || decode);
    BATON_CHECK(!command.has_migrate() || decode);
    BATON_CHECK(!command.has_prefill() || !decode);
    if (!command.has_admit() && !command.has_prefill()) return;
    const v1::Work& work = command.has_admit() ? command.admit().work() : command.prefill().work();
    BATON_CHECK(work.prompt_tokens() > 0);
    BATON_CHECK(static_cast<uint32_t>(work.tokens_size()) >= work.prompt_tokens());
    BATON_CHECK(static_cast<uint32_t>(work.tokens_size()) < work.total_tokens_max());
  }

  static void Show(Client& client, const v1::Delta& delta) {
    BATON_CHECK(!client.ended);
    for (const v1::Token& token : delta.tokens()) {
      BATON_CHECK(token.id() >= 0 && static_cast<uint32_t>(token.id()) < kVocabSize);
      BATON_CHECK(client.prompt_tokens + token.index() == client.tokens.size());
      BATON_CHECK(client.tokens.size() < client.total_tokens_max);
      client.tokens.push_back(token.id());
    }
  }

  static void End(Client& client, const Finish& finish) {
    BATON_CHECK(!client.ended);
    client.ended = true;
    const v1::Finished& finished = finish.finished;
    BATON_CHECK(client.prompt_tokens + finished.usage().generated_tokens() <= client.tokens.size());
    if (!finish.status.ok()) return;
    const bool stopped = finished.has_stop_string() || client.tokens.back() == kStopToken;
    BATON_CHECK(finished.reason() == v1::FINISH_REASON_STOP ||
                finished.reason() == v1::FINISH_REASON_LENGTH);
    if (finished.reason() == v1::FINISH_REASON_STOP) {
      BATON_CHECK(stopped);
    } else {
      BATON_CHECK(client.open_ended || client.tokens.size() == client.total_tokens_max);
    }
  }

  FuzzInput input_;
  Instant now_{std::chrono::seconds(1000)};
  RouterCore core_;
  std::vector<WorkerId> ids_;
  std::map<WorkerId, std::deque<v1::Command>> commands_;  // Sent and not answered.
  std::map<RequestId, Client> clients_;
  uint64_t next_incarnation_ = 1;
  uint64_t next_request_ = 1;
  uint64_t next_nonce_ = 1;
};

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::World(baton::FuzzInput(data, size)).Run();
  return 0;
}
