// Commands as any router may send them to a decode worker, between steps, clock ticks and answers
// of the transfer agent.
//
// The ledger of blocks holds after every event; a request's tokens are consecutive and nothing
// follows its end; once routers and transfers are gone every block is back.
#include <map>
#include <memory>
#include <utility>

#include "decode_worker/decode_engine.h"
#include "tests/fuzz/engine_world.h"

namespace baton {
namespace {

constexpr size_t kActsMax = 200;
constexpr Incarnation kRouters[] = {Incarnation{7}, Incarnation{8}};

class World {
 public:
  explicit World(FuzzInput input)
      : input_(input),
        kind_(input_.Below(4)),
        fixture_(kind_ % 2 == 0 ? 0 : 9),
        transfers_(fixture_.arena.get()),
        engine_(std::make_unique<DecodeEngine>(
            DecodeEngineOptions{.incarnation = Incarnation{1},
                                .chunk_tokens = 8,
                                .sequences_max = 6,
                                .local_prefill = static_cast<LocalPrefill>(input_.Below(3))},
            &fixture_.executor, &fixture_.pool, &fixture_.events, &transfers_,
            [this] { return fixture_.now; }, [this] { return ++random_; },
            input_.Below(2) == 0 ? nullptr : MakeSwapSpace())) {
    if (kind_ >= 2) fixture_.starting_model.StartSteps(input_.Byte());
  }

  void Run() {
    for (size_t act = 0; act < kActsMax && !input_.empty(); ++act) {
      Act();
      fixture_.pool.CheckInvariants();
      Listen();
    }
    for (const Incarnation router : kRouters) engine_->OnSessionClosed(router);
    transfers_.refuses = false;
    while (!transfers_.retired.empty()) Quiesce();
    while (!transfers_.transfers.empty()) ReleaseTransfer();
    BATON_CHECK(!engine_->Step(fixture_.now));  // At most it forgets one that was started.
    BATON_CHECK(engine_->idle() && !engine_->HasWork());
    const BlockCounts& counts = fixture_.pool.counts();
    BATON_CHECK(counts.free + counts.cached == counts.total);
    BATON_CHECK(transfers_.leases.empty());
    engine_.reset();
  }

 private:
  // For fewer blocks than there are.
  std::unique_ptr<SwapSpace> MakeSwapSpace() const {
    const KvArena& arena = *fixture_.arena;
    return SwapSpace::Create(arena, 5 * arena.layout().block_bytes()).value();
  }

  void Act() {
    switch (input_.Below(12)) {
      case 0:
      case 1:
      case 2:
        Command();
        break;
      case 3:
      case 4:
        engine_->Step(fixture_.now);
        break;
      case 5:
        fixture_.now += std::chrono::milliseconds(input_.Byte() * 100);
        engine_->OnTick(fixture_.now);
        break;
      case 6:
        Fill();
        break;
      case 7:
        EndLease();
        break;
      case 8:
        Quiesce();
        break;
      case 9:
        AnswerTransfer();
        break;
      case 10:
        AnswerProbe();
        break;
      case 11:
        Rare();
        break;
    }
  }

  void Command() {
    const Incarnation router = kRouters[input_.Below(2)];
    auto command = ReadMessage<v1::Command>(input_);
    // So that it can mean the last lease of this very engine.
    if (command.migrate().has_ticket() && input_.Below(2) == 0) {
      command.mutable_migrate()->mutable_ticket()->set_layout_fingerprint(
          fixture_.arena->layout().Fingerprint());
    }
    if (command.has_admit()) {
      // The replaced attempt's tokens, if there was one, are history.
      heard_.erase({router, RequestId{command.admit().work().request()}});
      admitted_[{router, RequestId{command.admit().work().request()}}] = command.admit().work();
    }
    engine_->OnCommand(router, command, fixture_.now);
  }

  void Rare() {
    switch (input_.Below(5)) {
      case 0:
        engine_->OnSessionClosed(kRouters[input_.Below(2)]);
        break;
      case 1:
        engine_->BeginDrain();
        break;
      case 2:
        transfers_.refuses = !transfers_.refuses;
        break;
      case 3:
        fixture_.model.FailNext(absl::InternalError("the device is lost"));
        break;
      case 4:
        (void)engine_->Load();
        break;
    }
  }

  // --- The transfer agent's answers -------------------------------------------------------------

  // Plays P. What is in the blocks does not matter here.
  void Fill() {
    if (transfers_.leases.empty()) return;
    const LeaseGrant& grant = PickFrom(transfers_.leases, input_.Byte())->second;
    LeaseFilled filled{.lease = grant.lease, .epoch = grant.epoch, .first_token = {}, .bytes = 0};
    filled.first_token.token = static_cast<TokenId>(input_.Byte());
    filled.first_token.index = input_.Below(4);
    filled.first_token.logprobs = input_.Bytes(input_.Below(64));
    engine_->OnTransferEvent(filled, fixture_.now);
  }
  void EndLease() {
    if (transfers_.leases.empty()) return;
    const auto [lease, epoch] = PickFrom(transfers_.leases, input_.Byte())->first;
    if (input_.Below(2) == 0) {
      engine_->OnTransferEvent(LeaseAborted{lease, epoch}, fixture_.now);
    } else {
      engine_->OnTransferEvent(LeaseFailed{lease, epoch, absl::DataLossError("damaged"), true},
                               fixture_.now);
    }
  }
  void Quiesce() {
    if (transfers_.retired.empty()) return;
    const auto chosen = PickFrom(transfers_.retired, input_.Byte());
    const auto [lease, epoch] = *chosen;
    transfers_.retired.erase(chosen);
    engine_->OnTransferEvent(LeaseQuiesced{lease, epoch}, fixture_.now);
  }
  void AnswerTransfer() {
    if (transfers_.transfers.empty()) return;
    const TransferId id = PickFrom(transfers_.transfers, input_.Byte())->first;
    switch (input_.Below(3)) {
      case 0:
        if (transfers_.committed.contains(id)) {
          engine_->OnTransferEvent(TransferAcked{id, 1, {}, {}}, fixture_.now);
        }
        break;
      case 1:
        engine_->OnTransferEvent(TransferFailed{id, absl::UnavailableError("lost"), true},
                                 fixture_.now);
        break;
      case 2:
        // What is under way is released only after it has ended.
        engine_->OnTransferEvent(TransferFailed{id, absl::UnavailableError("lost"), true},
                                 fixture_.now);
        transfers_.transfers.erase(id);
        engine_->OnTransferEvent(TransferReleased{id}, fixture_.now);
        break;
    }
  }
  void ReleaseTransfer() {
    const TransferId id = transfers_.transfers.begin()->first;
    transfers_.transfers.erase(id);
    engine_->OnTransferEvent(TransferReleased{id}, fixture_.now);
  }
  void AnswerProbe() {
    if (transfers_.probes.empty()) return;
    engine_->OnTransferEvent(ProbeFinished{transfers_.probes.back(), absl::OkStatus(), 1, 1},
                             fixture_.now);
    transfers_.probes.pop_back();
  }

  // --- What the routers hear --------------------------------------------------------------------

  void Listen() {
    for (auto& [router, event] : std::exchange(fixture_.events.events, {})) {
      for (const auto& sequence : event.tokens().sequences()) HearTokens(router, sequence);
      if (event.has_finished()) End(router, event.finished().request());
      if (event.has_failed()) End(router, event.failed().request());
      if (event.has_migrated()) End(router, event.migrated().request());
      if (event.admitted().has_ticket()) {
        const v1::Ticket& ticket = event.admitted().ticket();
        BATON_CHECK(TicketToProto(TicketFromProto(ticket)).SerializeAsString() ==
                    ticket.SerializeAsString());
      }
    }
  }

  void HearTokens(Incarnation router, const v1::Tokens::Sequence& sequence) {
    const RequestKey key{router, RequestId{sequence.request()}};
    const v1::Work& work = admitted_.at(key);
    const auto given = static_cast<uint32_t>(work.tokens_size()) - work.prompt_tokens();
    Heard& heard = heard_[key];
    BATON_CHECK(!heard.ended);
    for (const v1::Token& token : sequence.tokens()) {
      CheckToken(token, work.sampling());
      BATON_CHECK(token.index() == given + heard.tokens++);
      BATON_CHECK(work.prompt_tokens() + token.index() < work.total_tokens_max());
    }
  }
  void End(Incarnation router, uint64_t request) {
    Heard& heard = heard_[{router, RequestId{request}}];
    BATON_CHECK(!heard.ended);
    heard.ended = true;
  }

  struct Heard {
    uint32_t tokens = 0;
    bool ended = false;
  };

  FuzzInput input_;
  const uint32_t kind_;  // Whether the model has a window, and whether it starts steps.
  EngineSurroundings fixture_;
  OwingTransfers transfers_;
  uint64_t random_ = 0;
  std::unique_ptr<DecodeEngine> engine_;
  std::map<RequestKey, v1::Work> admitted_;
  std::map<RequestKey, Heard> heard_;
};

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::World(baton::FuzzInput(data, size)).Run();
  return 0;
}
