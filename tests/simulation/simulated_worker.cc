#include "tests/simulation/simulated_worker.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "decode_worker/decode_engine.h"
#include "prefill_worker/prefill_engine.h"

namespace baton {
namespace {

using std::chrono::milliseconds;

constexpr Duration kEngineTick = milliseconds(50);
constexpr int kPollsMax = 32;
constexpr uint32_t kSequencesMax = 8;

TransferCoreOptions TransferOptionsOf(const FaultPlan& plan) {
  // Seconds in production; here the whole run takes some.
  return {.sender = {.in_flight_bytes_max = 1u << 12,
                     .message_bytes_max = std::max<size_t>(1, plan.message_bytes_max),
                     .transfer_deadline = milliseconds(400),
                     .force_close_after = milliseconds(100)},
          .receiver = {.force_close_after = milliseconds(100)},
          .prober = {
              .bytes = 64, .deadline = milliseconds(300), .force_close_after = milliseconds(100)}};
}

}  // namespace

// Watches what lands: only in blocks that a lease is being filled in, or that wait for just that.
class SimulatedWorker::GuardedTransport final : public Transport {
 public:
  GuardedTransport(std::unique_ptr<Transport> transport, SimulatedWorker* worker)
      : transport_(std::move(transport)), worker_(worker) {}

  const std::string& address() const override { return transport_->address(); }
  const std::string& name() const override { return transport_->name(); }
  void OnMessage(MessageType type, Accept accept) override {
    transport_->OnMessage(
        type,
        [this,
         accept = std::move(accept)](const IncomingMessage& incoming) -> std::optional<Landing> {
          std::optional<Landing> landing = accept(incoming);
          if (!landing) return landing;
          std::vector<BlockId> blocks = BlocksOf(landing->spans);
          CheckReceiving(blocks, "posted");
          landing->landed = [this, blocks = std::move(blocks),
                             landed = std::move(landing->landed)](absl::Status status) {
            CheckReceiving(blocks, "landed");
            landed(std::move(status));
          };
          return landing;
        });
  }
  void OnPeerLost(PeerLost lost) override { transport_->OnPeerLost(std::move(lost)); }
  absl::StatusOr<PeerId> Connect(const std::string& address) override {
    return transport_->Connect(address);
  }
  void Send(PeerId peer, MessageType type, ConstSpan header, std::vector<ConstSpan> payload,
            Done done) override {
    transport_->Send(peer, type, header, std::move(payload), std::move(done));
  }
  void ForceClose(PeerId peer) override { transport_->ForceClose(peer); }
  bool Poll() override { return transport_->Poll(); }
  int event_fd() const override { return transport_->event_fd(); }
  bool Arm() override { return transport_->Arm(); }

 private:
  // Those of the arena that the spans touch; a probe's payload lies elsewhere.
  std::vector<BlockId> BlocksOf(const std::vector<MutableSpan>& spans) const {
    const KvArena& arena = *worker_->arena_;
    const std::byte* begin = arena.BlockData(BlockId{0});
    std::vector<BlockId> blocks;
    for (const MutableSpan& span : spans) {
      const auto offset = static_cast<size_t>(span.data() - begin);
      if (span.data() < begin || offset >= arena.layout().block_bytes() * arena.block_count()) {
        continue;
      }
      const BlockId block{static_cast<uint32_t>(offset / arena.layout().block_bytes())};
      if (blocks.empty() || blocks.back() != block) blocks.push_back(block);
    }
    return blocks;
  }
  void CheckReceiving(const std::vector<BlockId>& blocks, const char* what) const {
    for (const BlockId block : blocks) {
      if (worker_->pool_.TakesBytes(block)) continue;
      worker_->record_.Violated(worker_->now_,
                                absl::StrCat(worker_->name_, ": a receive was ", what, " in block ",
                                             Raw(block), ", which no lease holds for that"));
    }
  }

  const std::unique_ptr<Transport> transport_;
  SimulatedWorker* const worker_;
};

SimulatedWorker::SimulatedWorker(std::string name, v1::Role role, Incarnation incarnation,
                                 const FaultPlan& plan, uint32_t blocks, InprocNetwork& network,
                                 const Instant& now, uint64_t seed, Record& record)
    : name_(std::move(name)),
      role_(role),
      incarnation_(incarnation),
      plan_(plan),
      now_(now),
      dice_(seed),
      record_(record),
      model_(kSimulatedVocabulary, kSimulatedContext, plan.window),
      device_(MakeHostDevice()),
      arena_(KvArena::Create(*device_, model_.Layout(kSimulatedBlockTokens), blocks).value()),
      pool_(arena_->block_count()),
      executor_(&starting_model_, arena_.get()) {
  if (plan.started_steps && role == v1::ROLE_DECODE) starting_model_.StartSteps(seed);
  auto transport = std::make_unique<GuardedTransport>(network.Open(name_), this);
  address_ = transport->address();
  transfers_ = std::make_unique<TransferCore>(
      std::move(transport), TransferOptionsOf(plan), TransferStaging::Create(*arena_, 0).value(),
      [this](TransferEvent event) { inbox_.push_back(std::move(event)); },
      [this] { return std::exchange(commands_, {}); }, [this] { return now_; });
  const ClockFunction clock = [this] { return now_; };
  if (role == v1::ROLE_PREFILL) {
    engine_ = std::make_unique<PrefillEngine>(
        PrefillEngineOptions{.chunk_tokens = plan.chunk_tokens, .jobs_max = kSequencesMax},
        &executor_, &pool_, this, this, clock);
  } else {
    engine_ = std::make_unique<DecodeEngine>(
        DecodeEngineOptions{.incarnation = incarnation,
                            .chunk_tokens = plan.chunk_tokens,
                            .sequences_max = kSequencesMax,
                            .local_prefill = plan.colocated       ? LocalPrefill::kAlways
                                             : plan.local_prefill ? LocalPrefill::kOnRequest
                                                                  : LocalPrefill::kRefused},
        &executor_, &pool_, this, this, clock, [this] { return dice_.Roll(); },
        plan.swap_blocks == 0
            ? nullptr
            : SwapSpace::Create(*arena_, plan.swap_blocks * arena_->layout().block_bytes())
                  .value());
  }
}

SimulatedWorker::~SimulatedWorker() {
  commands_.clear();
  transfers_.reset();
  engine_.reset();
}

v1::WorkerHello SimulatedWorker::Hello() const {
  v1::WorkerHello hello;
  hello.set_incarnation(Raw(incarnation_));
  hello.set_role(role_);
  hello.set_local_prefill(role_ == v1::ROLE_DECODE && plan_.local_prefill);
  hello.set_local_prefill_always(role_ == v1::ROLE_DECODE && plan_.colocated);
  hello.set_sequences_max(kSequencesMax);
  hello.set_transfer_address(address_);
  hello.set_blocks_total(pool_.counts().total);
  hello.mutable_model()->set_model_fingerprint(model_.fingerprint());
  hello.mutable_model()->set_layout_fingerprint(arena_->layout().Fingerprint());
  hello.mutable_model()->set_numerics(model_.numerics());
  hello.mutable_model()->set_vocab_size(kSimulatedVocabulary);
  hello.mutable_model()->set_context_tokens(kSimulatedContext);
  hello.mutable_model()->set_block_tokens(kSimulatedBlockTokens);
  return hello;
}

void SimulatedWorker::BeginDrain() {
  draining_ = true;
  engine_->BeginDrain();
  v1::Event event;
  event.mutable_draining();
  for (const Incarnation router : sessions_) events_.push_back({router, event});
}

bool SimulatedWorker::RunTransfers() {
  bool any = !commands_.empty();
  transfers_->Advance();
  for (int i = 0; i < kPollsMax && transfers_->Poll(); ++i) any = true;
  return any;
}

bool SimulatedWorker::RunEngine() {
  if (std::exchange(in_step_, false)) {
    engine_->Step(now_);
    pool_.CheckInvariants();
    return true;
  }
  const bool any = !inbox_.empty();
  for (InboxItem& item : std::exchange(inbox_, {})) {
    if (const auto* opened = std::get_if<SessionOpened>(&item)) {
      sessions_.push_back(opened->router);
      if (!draining_) continue;
      v1::Event event;
      event.mutable_draining();
      events_.push_back({opened->router, std::move(event)});
    } else if (const auto* commanded = std::get_if<Commanded>(&item)) {
      record_.Tell(now_, name_, " <- ",
                   record_.telling() ? commanded->command.ShortDebugString() : "");
      if (commanded->command.has_drain()) {
        if (!draining_) BeginDrain();
      } else {
        engine_->OnCommand(commanded->router, commanded->command, now_);
      }
    } else if (const auto* closed = std::get_if<SessionClosed>(&item)) {
      record_.Tell(now_, name_, ": session closed");
      std::erase(sessions_, closed->router);
      engine_->OnSessionClosed(closed->router);
    } else {
      engine_->OnTransferEvent(std::get<TransferEvent>(item), now_);
    }
  }
  if (now_ >= next_tick_) {
    engine_->OnTick(now_);
    next_tick_ = now_ + kEngineTick;
  }
  // What was started before may still run when KV arrives, and this thread only waits for it then.
  in_step_ = engine_->HasWork() && plan_.started_steps;
  const bool stepped = in_step_ || (engine_->HasWork() && engine_->Step(now_));
  if (any || stepped) pool_.CheckInvariants();
  return any || stepped;
}

v1::Event SimulatedWorker::LoadEvent() const {
  v1::Event event;
  *event.mutable_load()->mutable_load() = engine_->Load();
  return event;
}

void SimulatedWorker::CheckAtRest() {
  pool_.CheckInvariants();
  const BlockCounts& counts = pool_.counts();
  if (!idle() || counts.free + counts.cached != counts.total) {
    record_.Violated(
        now_, absl::StrCat(name_, " is not at rest: ", counts.in_use, " blocks in use, ",
                           counts.receiving, " receiving, ", counts.quarantined, " quarantined",
                           engine_->idle() ? "" : ", the engine is not idle"));
  }
  if (engine_->Load().swap_blocks_used() > 0) {
    record_.Violated(now_, absl::StrCat(name_, " keeps swapped KV of nobody at rest"));
  }
  if (transfers_->busy() || transfers_->receiver().open_count() > 0) {
    record_.Violated(
        now_, absl::StrCat(name_, " has ", transfers_->sender().open_count(), " transfers and ",
                           transfers_->receiver().open_count(), " leases open at rest"));
  }
}

void SimulatedWorker::Send(Incarnation router, v1::Event event) {
  if (std::find(sessions_.begin(), sessions_.end(), router) == sessions_.end()) return;
  events_.push_back({router, std::move(event)});
}

absl::Status SimulatedWorker::OpenLease(LeaseGrant grant) {
  absl::Status fits = KvReceiver::CheckGrant(*arena_, grant);
  if (fits.ok()) commands_.emplace_back(OpenCommand{std::move(grant)});
  return fits;
}
void SimulatedWorker::RetireLease(LeaseId lease, Epoch epoch) {
  commands_.emplace_back(RetireCommand{lease, epoch});
}
absl::Status SimulatedWorker::BeginTransfer(TransferId id, Ticket ticket,
                                            std::vector<BlockId> blocks) {
  absl::Status fits = KvSender::CheckTicket(*arena_, ticket, blocks, {});
  if (fits.ok()) commands_.emplace_back(BeginCommand{id, std::move(ticket), std::move(blocks), {}});
  return fits;
}
absl::Status SimulatedWorker::PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) {
  commands_.emplace_back(PushCommand{id, layers, tokens});
  return absl::OkStatus();
}
absl::Status SimulatedWorker::CommitTransfer(TransferId id, CommittedToken first_token) {
  commands_.emplace_back(CommitCommand{id, std::move(first_token)});
  return absl::OkStatus();
}
void SimulatedWorker::AbortTransfer(TransferId id) { commands_.emplace_back(AbortCommand{id}); }
absl::Status SimulatedWorker::Probe(ProbeId id, std::string to) {
  commands_.emplace_back(ProbeCommand{id, std::move(to)});
  return absl::OkStatus();
}

}  // namespace baton
