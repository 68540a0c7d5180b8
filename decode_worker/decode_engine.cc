#include "decode_worker/decode_engine.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/wire_status.h"
#include "common/engine/ticket_codec.h"
#include "common/engine/work_codec.h"

namespace baton {
namespace {

// Whether a token's log-probabilities can be what was asked for.
bool HasLogprobsAsAsked(const v1::Token& token, const SamplingParams& sampling) {
  const auto top_count_max = static_cast<int>(sampling.logprobs.value_or(0));
  const auto& top = token.top_logprobs();
  return !std::isnan(token.logprob()) && top.size() <= top_count_max &&
         std::all_of(top.begin(), top.end(), [](const v1::TokenLogprob& other) {
           return other.token() >= 0 && !std::isnan(other.logprob());
         });
}

// The token that came with a commit. Its log-probabilities are another worker's words.
v1::Token TokenOf(const CommittedToken& committed, const SamplingParams& sampling) {
  v1::Token token;
  if (!sampling.logprobs.has_value() || !token.ParseFromString(committed.logprobs) ||
      !HasLogprobsAsAsked(token, sampling)) {
    token.Clear();
  }
  token.DiscardUnknownFields();
  token.set_index(committed.index);
  token.set_id(committed.token);
  return token;
}

}  // namespace

DecodeEngine::DecodeEngine(const DecodeEngineOptions& options, Executor* executor, BlockPool* pool,
                           EventPort* events, TransferPort* transfers, ClockFunction clock,
                           RandomFunction random, std::unique_ptr<SwapSpace> swap)
    : options_(options),
      executor_(executor),
      pool_(pool),
      events_(events),
      transfers_(transfers),
      clock_(std::move(clock)),
      random_(std::move(random)),
      block_tokens_(executor->arena().layout().block_tokens),
      swap_(std::move(swap)),
      probes_(events, transfers) {}

DecodeEngine::~DecodeEngine() {
  // A lease that is being filled does not own its blocks alone: they go to quarantine, not to the
  // pool.
  while (!slots_.empty()) Drop(slots_.begin()->first);
  executor_->Forget();
}

// --- Commands -----------------------------------------------------------------------------------

void DecodeEngine::OnCommand(Incarnation router, const v1::Command& command, Instant now) {
  if (command.has_admit()) OnAdmit(router, command.admit(), now);
  if (command.has_reopen()) OnReopen(router, command.reopen());
  if (command.has_migrate()) OnMigrate(router, command.migrate(), now);
  if (command.has_cancel()) Drop({router, RequestId{command.cancel().request()}});
  if (command.has_probe()) probes_.Start(router, command.probe());
}

void DecodeEngine::OnAdmit(Incarnation router, const v1::Admit& admit, Instant now) {
  const RequestKey key = {router, RequestId{admit.work().request()}};
  Drop(key);  // A new attempt at the same request replaces the old one.
  absl::StatusOr<Sequence> sequence =
      SequenceFromWork(router, admit.work(), executor_->model().config(), now);
  if (!sequence.ok()) return Reject(key, sequence.status());

  auto owned = std::make_unique<Slot>();
  Slot& slot = *owned;
  slot.sequence = *std::move(sequence);
  slot.sequence.arrival = next_arrival_++;
  slot.lease = LeaseId{next_lease_++};
  slot.shown_tokens = slot.sequence.token_count();
  slot.state = State::kBroken;  // Until the first epoch is open.
  TakeCachedPrefix(*pool_, block_tokens_, slot.sequence);
  slot.held_blocks = slot.sequence.blocks.size();
  absl::Status room = CheckRoom(slot.sequence);
  if (!room.ok() && TakeBackWritten()) room = CheckRoom(slot.sequence);
  if (!room.ok()) return Reject(key, room);
  deadlines_.Add(slot.sequence.deadline, key);
  slots_[key] = std::move(owned);
  lease_owner_[slot.lease] = key;
  const uint32_t cached = slot.sequence.cached_tokens;
  const bool only_a_tail = cached > 0 && options_.local_prefill != LocalPrefill::kRefused &&
                           slot.sequence.token_count() - cached <= admit.local_prefill_tokens_max();
  const absl::Status opened = Open(slot, admit.local_prefill() || only_a_tail);
  if (!opened.ok()) {
    Drop(key);
    return Reject(key, opened);
  }
  stats_.cached_tokens += slot.sequence.cached_tokens;
}

absl::Status DecodeEngine::CheckRoom(const Sequence& sequence) const {
  if (draining_) return absl::UnavailableError("this decode worker is draining");
  const KvLayout& layout = executor_->arena().layout();
  const BlockCounts& counts = pool_->counts();
  const uint32_t most = layout.BlocksFor(sequence.total_tokens_max);
  if (most > counts.total) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens: ", sequence.total_tokens_max, " tokens need ", most,
                     " KV blocks, the decode worker has ", counts.total, "; ask for fewer tokens"));
  }
  if (slots_.size() >= options_.sequences_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the decode worker runs ", slots_.size(), " sequences already"));
  }
  // Everybody here grows: one block for each is kept for that. And who gave up all blocks comes
  // first, lest newcomers take what becomes free for ever.
  uint32_t needed = layout.BlocksFor(sequence.token_count() + 1) - sequence.blocks.size() +
                    static_cast<uint32_t>(slots_.size());
  for (const auto& [key, slot] : slots_) {
    if (slot->state == State::kPrefilling && slot->sequence.blocks.size() == 0) {
      needed += layout.BlocksFor(slot->sequence.token_count());
    }
  }
  const bool alone = slots_.empty();
  if (!alone && needed > counts.available()) {
    return absl::ResourceExhaustedError(absl::StrCat("needs ", needed, " KV blocks with growth, ",
                                                     counts.available(), " are available"));
  }
  return absl::OkStatus();
}

absl::Status DecodeEngine::ReserveAll(Sequence& sequence) {
  const uint32_t tokens = sequence.token_count();
  const absl::Status reserved = ReserveBlocks(*pool_, block_tokens_, tokens, sequence);
  if (reserved.ok() || !TakeBackWritten()) return reserved;
  return ReserveBlocks(*pool_, block_tokens_, tokens, sequence);
}

absl::Status DecodeEngine::Open(Slot& slot, bool local_prefill_asked) {
  if (local_prefill_asked && options_.local_prefill == LocalPrefill::kRefused) {
    return absl::FailedPreconditionError("this decode worker does not compute prompts");
  }
  const bool local_prefill = local_prefill_asked || options_.local_prefill == LocalPrefill::kAlways;
  Sequence& sequence = slot.sequence;
  BATON_CHECK(slot.state == State::kBroken);
  BATON_RETURN_IF_ERROR(ReserveAll(sequence));
  v1::Event event;
  v1::Admitted* admitted = event.mutable_admitted();
  admitted->set_request(Raw(sequence.key.request));
  admitted->set_cached_tokens(sequence.cached_tokens);
  if (local_prefill) {
    SetState(slot, State::kPrefilling);
    scheduler_.Add(&sequence);
  } else {
    slot.epoch = Epoch{Raw(slot.epoch) + 1};
    const std::span<const BlockId> blocks = sequence.blocks.blocks();
    const Ticket ticket = {.address = transfers_->address(),
                           .incarnation = options_.incarnation,
                           .lease = slot.lease,
                           .nonce = {.high = random_(), .low = random_()},
                           .epoch = slot.epoch,
                           .held_tokens = slot.held_blocks * block_tokens_,
                           .prompt_tokens = sequence.token_count(),
                           .layout_fingerprint = executor_->arena().layout().Fingerprint(),
                           .shard_heads = executor_->arena().shard_layout().kv_heads};
    BATON_RETURN_IF_ERROR(transfers_->OpenLease({.lease = ticket.lease,
                                                 .nonce = ticket.nonce,
                                                 .epoch = ticket.epoch,
                                                 .blocks = {blocks.begin(), blocks.end()},
                                                 .held_tokens = ticket.held_tokens,
                                                 .prompt_tokens = ticket.prompt_tokens}));
    for (BlockId block : blocks.subspan(slot.held_blocks)) pool_->StartReceiving(block);
    SetState(slot, State::kReserved);
    *admitted->mutable_ticket() = TicketToProto(ticket);
  }
  events_->Send(sequence.key.router, std::move(event));
  return absl::OkStatus();
}

void DecodeEngine::OnReopen(Incarnation router, const v1::Reopen& reopen) {
  const RequestKey key = {router, RequestId{reopen.request()}};
  Slot* slot = Find(key);
  if (slot == nullptr) {
    return Reject(key, absl::NotFoundError("the decode worker does not know this request"));
  }
  if (slot->state != State::kReserved && slot->state != State::kBroken) {
    v1::Event event;
    event.mutable_already_committed()->set_request(reopen.request());
    return events_->Send(router, std::move(event));
  }
  if (slot->state == State::kReserved) RetireEpoch(*slot);
  if (absl::Status status = Open(*slot, reopen.local_prefill()); !status.ok()) {
    Drop(key);
    Reject(key, status);
  }
}

void DecodeEngine::Reject(RequestKey key, const absl::Status& status) {
  ++stats_.rejected;
  events_->Send(key.router, RejectedEvent(key.request, status));
}

void DecodeEngine::OnSessionClosed(Incarnation router) {
  std::vector<RequestKey> keys;
  for (const auto& [key, slot] : slots_) {
    if (key.router == router) keys.push_back(key);
  }
  for (const RequestKey& key : keys) Drop(key);
}

void DecodeEngine::OnTick(Instant now) {
  StopLateMoves(now);
  for (const RequestKey& key : deadlines_.Due(now)) {
    Fail(key, absl::DeadlineExceededError("the deadline passed"), /*retryable=*/false);
  }
}

// --- The lease ----------------------------------------------------------------------------------

void DecodeEngine::OnTransferEvent(const TransferEvent& event, Instant now) {
  if (const auto* filled = std::get_if<LeaseFilled>(&event)) {
    OnFilled(*filled, now);
  } else if (const auto* failed = std::get_if<LeaseFailed>(&event)) {
    if (Slot* slot = FindByLease(failed->lease, failed->epoch)) RetireEpoch(*slot);
  } else if (const auto* aborted = std::get_if<LeaseAborted>(&event)) {
    if (Slot* slot = FindByLease(aborted->lease, aborted->epoch)) RetireEpoch(*slot);
  } else if (const auto* quiesced = std::get_if<LeaseQuiesced>(&event)) {
    const auto it = retiring_.find({quiesced->lease, quiesced->epoch});
    if (it == retiring_.end()) return;  // It had been filled: nothing was in quarantine.
    for (BlockId block : it->second) pool_->ReleaseQuarantined(block);
    retiring_.erase(it);
  } else if (const auto* acked = std::get_if<TransferAcked>(&event)) {
    OnMoved(*acked, now);
  } else if (const auto* refused = std::get_if<TransferFailed>(&event)) {
    OnMoveFailed(*refused, now);
  } else if (const auto* released = std::get_if<TransferReleased>(&event)) {
    ReleaseMove(released->id);
  } else if (const auto* probe = std::get_if<ProbeFinished>(&event)) {
    probes_.OnFinished(*probe);
  }
}

void DecodeEngine::OnFilled(const LeaseFilled& filled, Instant now) {
  Slot* slot = FindByLease(filled.lease, filled.epoch);
  if (slot == nullptr) return;
  Sequence& sequence = slot->sequence;
  for (BlockId block : sequence.blocks.blocks().subspan(slot->held_blocks)) {
    pool_->FinishReceiving(block);
  }
  transfers_->RetireLease(slot->lease, slot->epoch);
  SetState(*slot, State::kRunning);
  const CommittedToken& first = filled.first_token;
  const auto vocab = executor_->model().config().vocab_size;
  if (first.index != sequence.generated() || first.token < 0 ||
      static_cast<uint32_t>(first.token) >= vocab) {
    return Fail(
        sequence.key,
        absl::InternalError(absl::StrCat("the commit carries token ", first.token, " at index ",
                                         first.index, ", expected index ", sequence.generated())),
        /*retryable=*/true);
  }
  sequence.computed = sequence.token_count();
  KeepBlocks(sequence);
  sequence.tokens.push_back(first.token);
  slot->first_token_at = now;
  v1::Token token = TokenOf(first, sequence.sampling);
  RememberToken(*slot, token);
  EmitToken(*slot, std::move(token));
  FlushTokens();
  FinishIfEnded(*slot, now);
}

void DecodeEngine::RetireEpoch(Slot& slot) {
  BATON_CHECK(slot.state == State::kReserved);
  transfers_->RetireLease(slot.lease, slot.epoch);
  std::vector<BlockId> blocks = slot.sequence.blocks.Detach(slot.held_blocks);
  for (BlockId block : blocks) pool_->Quarantine(block);
  retiring_[{slot.lease, slot.epoch}] = std::move(blocks);
  SetState(slot, State::kBroken);
}

DecodeEngine::Slot* DecodeEngine::Find(RequestKey key) {
  const auto it = slots_.find(key);
  return it == slots_.end() ? nullptr : it->second.get();
}

DecodeEngine::Slot* DecodeEngine::FindByLease(LeaseId lease, Epoch epoch) {
  const auto owner = lease_owner_.find(lease);
  if (owner == lease_owner_.end()) return nullptr;
  Slot* slot = Find(owner->second);
  BATON_CHECK(slot != nullptr);
  return slot->epoch == epoch && slot->state == State::kReserved ? slot : nullptr;
}

void DecodeEngine::SetState(Slot& slot, State state) {
  running_count_ -= slot.state == State::kRunning ? 1 : 0;
  running_count_ += state == State::kRunning ? 1 : 0;
  slot.state = state;
}

void DecodeEngine::Drop(RequestKey key) {
  Slot* slot = Find(key);
  if (slot == nullptr) return;
  if (slot->state == State::kReserved) RetireEpoch(*slot);
  if (slot->state == State::kMoving) transfers_->AbortTransfer(slot->move);
  SetState(*slot, State::kBroken);
  scheduler_.Remove(&slot->sequence);
  lease_owner_.erase(slot->lease);
  deadlines_.Remove(slot->sequence.deadline, key);
  GiveBackBlocks(slot->sequence);
  slots_.erase(key);
}

void DecodeEngine::Fail(RequestKey key, const absl::Status& status, bool retryable) {
  ++stats_.failed;
  v1::Event event;
  v1::SequenceFailed* failed = event.mutable_failed();
  failed->set_request(Raw(key.request));
  SetWireStatus(status, failed);
  failed->set_retryable(retryable);
  events_->Send(key.router, std::move(event));
  Drop(key);
}

// --- The step -----------------------------------------------------------------------------------

bool DecodeEngine::Step(Instant now) {
  std::vector<StepItem> items = StartedItems();
  const bool is_ahead = !items.empty();
  if (is_ahead) {
    now = step_ended_;  // Since then it runs.
  } else {
    if (ForgetStarted()) now = clock_();
    items = PlanDecodeRows();
    const std::vector<StepItem> chunks = PlanChunks(now);
    items.insert(items.end(), chunks.begin(), chunks.end());
  }
  if (items.empty()) return false;
  // One whose KV came back is as good as one that never lost it.
  const auto decode_rows = std::count_if(items.begin(), items.end(), [](const StepItem& item) {
    return item.sequence->pending() == 1 && item.sequence->generated() > 0;
  });

  std::vector<BlockTable> written = std::exchange(written_, {});
  const auto sampled = executor_->Run(items, nullptr, [&] { return PlanAhead(items); });
  written.clear();
  const Instant end = step_ended_ = clock_();
  if (!sampled.ok()) {
    // Another worker may be able to go on.
    for (const StepItem& item : items) {
      Fail(item.sequence->key, sampled.status(), /*retryable=*/true);
    }
    return true;
  }
  CountStep(items, static_cast<size_t>(decode_rows), end - now);
  if (is_ahead) ++stats_.steps_ahead;
  for (size_t i = 0; i < items.size(); ++i) {
    Slot& slot = *slots_.at(items[i].sequence->key);
    KeepBlocks(slot.sequence);
    if ((*sampled)[i].has_value()) OnSampled(slot, *(*sampled)[i], end);
  }
  // Tokens first: a client sees its last token before its end.
  FlushTokens();
  for (const StepItem& item : items) {
    const RequestKey key = item.sequence->key;
    FinishIfEnded(*slots_.at(key), end);
    if (Slot* slot = Find(key)) BeginMoveIfDue(*slot, end);
  }
  return true;
}

void DecodeEngine::CountStep(std::span<const StepItem> items, size_t decode_rows,
                             Duration duration) {
  size_t tokens = 0;
  for (const StepItem& item : items) tokens += item.count;
  const size_t prompt_tokens = tokens - decode_rows;
  ++stats_.steps;
  stats_.step_rows += decode_rows;
  stats_.decode_tokens += decode_rows;
  stats_.prompt_tokens += prompt_tokens;
  if (decode_rows > 0) decode_rate_.Add(static_cast<double>(decode_rows), duration);
  if (prompt_tokens > 0) prefill_rate_.Add(static_cast<double>(prompt_tokens), duration);
}

std::vector<StepItem> DecodeEngine::PlanChunks(Instant now) {
  return scheduler_.Plan(options_.chunk_tokens, [this, now](Sequence& sequence) {
    return ReserveForPrefill(*slots_.at(sequence.key), now);
  });
}

std::vector<DecodeEngine::Slot*> DecodeEngine::RunningSlots() const {
  std::vector<Slot*> running;
  for (const auto& [key, slot] : slots_) {
    if (slot->state == State::kRunning) running.push_back(slot.get());
  }
  std::sort(running.begin(), running.end(), [](const Slot* a, const Slot* b) {
    if (a->sequence.priority != b->sequence.priority) {
      return a->sequence.priority > b->sequence.priority;
    }
    return a->sequence.arrival < b->sequence.arrival;
  });
  return running;
}

std::vector<StepItem> DecodeEngine::PlanDecodeRows() {
  std::vector<StepItem> items;
  for (Slot* slot : RunningSlots()) {
    if (slot->state != State::kRunning || !Grow(*slot)) continue;
    items.push_back({.sequence = &slot->sequence, .count = 1});
  }
  return items;
}

bool DecodeEngine::Grow(Slot& slot) {
  Sequence& sequence = slot.sequence;
  while (!ReserveBlocks(*pool_, block_tokens_, sequence.token_count(), sequence).ok()) {
    Slot* victim = ChooseVictim();
    // The others keep their blocks by right, or blocks are about to come back: it waits.
    if (victim == &slot) return false;
    Preempt(*victim);
  }
  return true;
}

void DecodeEngine::KeepBlocks(Sequence& sequence) {
  PublishFullBlocks(*pool_, block_tokens_, sequence);
  ReleaseUnseenBlocks(executor_->model().config(), block_tokens_, sequence);
}

void DecodeEngine::OnSampled(Slot& slot, const SampledToken& token, Instant now) {
  Sequence& sequence = slot.sequence;
  if (slot.state == State::kPrefilling) {
    scheduler_.Remove(&sequence);
    SetState(slot, State::kRunning);
  }
  if (slot.first_token_at == Instant{}) slot.first_token_at = now;
  v1::Token said = TokenToProto(sequence.generated() - 1, token, sequence.sampling);
  RememberToken(slot, said);
  EmitToken(slot, std::move(said));
}

void DecodeEngine::EmitToken(const Slot& slot, v1::Token token) {
  const RequestKey key = slot.sequence.key;
  auto* sequence = unsent_tokens_[key.router].mutable_tokens()->add_sequences();
  sequence->set_request(Raw(key.request));
  sequence->set_epoch(Raw(slot.epoch));
  *sequence->add_tokens() = std::move(token);
}

void DecodeEngine::FlushTokens() {
  for (auto& [router, event] : unsent_tokens_) events_->Send(router, std::move(event));
  unsent_tokens_.clear();
}

void DecodeEngine::FinishIfEnded(Slot& slot, Instant now) {
  const Sequence& sequence = slot.sequence;
  if (slot.state != State::kRunning || sequence.token_count() == slot.shown_tokens) return;
  const std::optional<v1::FinishReason> reason = FinishOf(sequence);
  if (!reason.has_value()) return;
  ++stats_.finished;
  v1::Event event;
  v1::SequenceFinished* finished = event.mutable_finished();
  finished->set_request(Raw(sequence.key.request));
  finished->set_reason(*reason);
  finished->set_generated_tokens(sequence.generated());
  if (sequence.started != Instant{}) {
    finished->set_queue_ms(ToMilliseconds(sequence.started - sequence.arrived));
    finished->set_prefill_ms(ToMilliseconds(slot.first_token_at - sequence.started));
  }
  finished->set_decode_ms(ToMilliseconds(now - slot.first_token_at));
  events_->Send(sequence.key.router, std::move(event));
  Drop(sequence.key);
}

v1::WorkerLoad DecodeEngine::Load() const {
  v1::WorkerLoad load = LoadFromCounts(pool_->counts());
  load.set_sequences_running(running_count_);
  load.set_sequences_waiting(static_cast<uint32_t>(slots_.size()) - running_count_);
  load.set_tokens_queued(scheduler_.queued_tokens());
  load.set_prefill_tokens_per_second(prefill_rate_.per_second());
  load.set_decode_tokens_per_second(decode_rate_.per_second());
  if (swap_ != nullptr) {
    load.set_swap_blocks_total(swap_->blocks_total());
    load.set_swap_blocks_used(swap_->blocks_used());
  }
  return load;
}

}  // namespace baton
