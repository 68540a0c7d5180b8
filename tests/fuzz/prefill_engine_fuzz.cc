// Commands as any router may send them to a prefill worker, between steps, clock ticks and answers
// of the transfer agent.
//
// The ledger of blocks holds after every event; of each prompt comes at most one first token, and
// once routers and transfers are gone every block is back.
#include <map>
#include <memory>
#include <utility>

#include "prefill_worker/prefill_engine.h"
#include "tests/fuzz/engine_world.h"

namespace baton {
namespace {

constexpr size_t kActsMax = 200;
constexpr Incarnation kRouters[] = {Incarnation{7}, Incarnation{8}};

class World {
 public:
  explicit World(FuzzInput input)
      : input_(input),
        fixture_(/*window=*/0),
        transfers_(fixture_.arena.get()),
        engine_(std::make_unique<PrefillEngine>(
            PrefillEngineOptions{.chunk_tokens = 8, .jobs_max = 6}, &fixture_.executor,
            &fixture_.pool, &fixture_.events, &transfers_, [this] { return fixture_.now; })) {}

  void Run() {
    for (size_t act = 0; act < kActsMax && !input_.empty(); ++act) {
      Act();
      fixture_.pool.CheckInvariants();
      Listen();
    }
    for (const Incarnation router : kRouters) engine_->OnSessionClosed(router);
    while (!transfers_.transfers.empty()) Release(transfers_.transfers.begin()->first);
    BATON_CHECK(engine_->idle() && !engine_->HasWork());
    const BlockCounts& counts = fixture_.pool.counts();
    BATON_CHECK(counts.free + counts.cached == counts.total);
    engine_.reset();
  }

 private:
  void Act() {
    switch (input_.Below(8)) {
      case 0:
      case 1:
        Command();
        break;
      case 2:
      case 3:
      case 4:
        engine_->Step(fixture_.now);
        break;
      case 5:
        fixture_.now += std::chrono::milliseconds(input_.Byte() * 100);
        engine_->OnTick(fixture_.now);
        break;
      case 6:
        AnswerTransfer();
        break;
      case 7:
        Rare();
        break;
    }
  }

  void Command() {
    const Incarnation router = kRouters[input_.Below(2)];
    auto command = ReadMessage<v1::Command>(input_);
    // The test cannot guess it.
    if (command.prefill().has_ticket() && input_.Below(4) != 0) {
      command.mutable_prefill()->mutable_ticket()->set_layout_fingerprint(
          fixture_.arena->layout().Fingerprint());
    }
    if (command.has_prefill()) {
      const RequestKey key{router, RequestId{command.prefill().work().request()}};
      asked_[key] = command.prefill().work();
      answered_.erase(key);
    }
    engine_->OnCommand(router, command, fixture_.now);
  }

  void Rare() {
    switch (input_.Below(6)) {
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
      case 5:
        if (transfers_.probes.empty()) break;
        engine_->OnTransferEvent(ProbeFinished{transfers_.probes.back(), absl::OkStatus(), 1, 1},
                                 fixture_.now);
        transfers_.probes.pop_back();
        break;
    }
  }

  void AnswerTransfer() {
    if (transfers_.transfers.empty()) return;
    const TransferId id = PickFrom(transfers_.transfers, input_.Byte())->first;
    const absl::Status lost = absl::UnavailableError("the decode worker is lost");
    switch (input_.Below(3)) {
      case 0:
        if (!transfers_.committed.contains(id)) break;
        engine_->OnTransferEvent(TransferAcked{id, 1, {}, {}}, fixture_.now);
        break;
      case 1:
        engine_->OnTransferEvent(TransferFailed{id, lost, input_.Below(2) == 0}, fixture_.now);
        break;
      case 2:
        // Released is what has ended.
        engine_->OnTransferEvent(TransferFailed{id, lost, true}, fixture_.now);
        Release(id);
        break;
    }
  }
  void Release(TransferId id) {
    transfers_.transfers.erase(id);
    engine_->OnTransferEvent(TransferReleased{id}, fixture_.now);
  }

  void Listen() {
    for (auto& [router, event] : std::exchange(fixture_.events.events, {})) {
      if (!event.has_first_token()) continue;
      const v1::FirstToken& first = event.first_token();
      const RequestKey key{router, RequestId{first.request()}};
      BATON_CHECK(answered_.insert(key).second);
      const v1::Work& work = asked_.at(key);
      CheckToken(first.token(), work.sampling());
      BATON_CHECK(work.prompt_tokens() + first.token().index() ==
                  static_cast<uint32_t>(work.tokens_size()));
    }
  }

  FuzzInput input_;
  EngineSurroundings fixture_;
  OwingTransfers transfers_;
  std::unique_ptr<PrefillEngine> engine_;
  std::map<RequestKey, v1::Work> asked_;
  std::set<RequestKey> answered_;
};

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::World(baton::FuzzInput(data, size)).Run();
  return 0;
}
