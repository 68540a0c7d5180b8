// DecodeEngine: sequences that go on at another decode worker, with their KV.
//
// To the other worker this one is a prefill worker that has computed the prompt and everything
// generated so far. See "Moving house" in DESIGN_NOTES.md.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/wire_status.h"
#include "common/engine/ticket_codec.h"
#include "decode_worker/decode_engine.h"

namespace baton {
namespace {

// The router asks for a move a round trip after it has seen a token; few are made meanwhile.
constexpr size_t kSaidTokensMax = 64;
// How long a sequence stands still at most. Then it runs on here.
constexpr Duration kMoveTimeMax = std::chrono::seconds(10);

}  // namespace

void DecodeEngine::OnMigrate(Incarnation router, const v1::Migrate& migrate, Instant now) {
  Slot* slot = Find({router, RequestId{migrate.request()}});
  if (slot == nullptr) return;  // The router hears of its end, or has caused it.
  slot->next_home.reset();
  if (!migrate.has_ticket()) return StopMove(*slot);
  slot->next_home = TicketFromProto(migrate.ticket());
  BeginMoveIfDue(*slot, now);
}

// The sequence runs on here; its blocks stay pinned until the transport lets go of them.
void DecodeEngine::StopMove(Slot& slot) {
  if (slot.state != State::kMoving) return;
  transfers_->AbortTransfer(slot.move);
  SetState(slot, State::kRunning);
}

void DecodeEngine::StopLateMoves(Instant now) {
  for (const auto& [id, move] : moves_) {
    Slot* slot = FindByMove(id);
    if (slot == nullptr || now - move.began < kMoveTimeMax) continue;
    StopMove(*slot);
    SayMoveFailed(*slot, move.nonce, absl::DeadlineExceededError("the transfer took too long"),
                  /*transfer=*/true);
  }
}

// A preempted sequence goes once it runs again; one that is on its way stays on it.
void DecodeEngine::BeginMoveIfDue(Slot& slot, Instant now) {
  if (slot.state != State::kRunning || !slot.next_home.has_value()) return;
  if (slot.sequence.token_count() <= slot.next_home->prompt_tokens) return;
  const Ticket ticket = *std::exchange(slot.next_home, std::nullopt);
  if (const absl::Status begun = BeginMove(slot, ticket, now); !begun.ok()) {
    SayMoveFailed(slot, ticket.nonce.low, begun, /*transfer=*/false);
  }
}

absl::Status DecodeEngine::BeginMove(Slot& slot, const Ticket& ticket, Instant now) {
  const Sequence& sequence = slot.sequence;
  const uint32_t sent_tokens = ticket.prompt_tokens;
  if (sent_tokens < sequence.prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the ticket is for ", sent_tokens, " tokens, the prompt has ", sequence.prompt_tokens));
  }
  if (sequence.blocks.blocks().front() == kNoBlock) {
    return absl::FailedPreconditionError("what is behind the window is gone");
  }
  CommittedToken first = {.token = sequence.tokens[sent_tokens],
                          .index = sent_tokens - sequence.prompt_tokens,
                          .logprobs = ""};
  if (sequence.sampling.logprobs.has_value()) {
    const uint32_t later = sequence.token_count() - 1 - sent_tokens;
    if (later >= slot.said_tokens.size()) {
      return absl::FailedPreconditionError("the log-probabilities of the ticket's token are gone");
    }
    first.logprobs = slot.said_tokens[slot.said_tokens.size() - 1 - later];
  }
  const auto blocks =
      sequence.blocks.blocks().first(executor_->arena().layout().BlocksFor(sent_tokens));
  // A step that was started may be writing to the last of them: the token behind those that are
  // sent.
  const TransferId id{next_move_++};
  absl::Status begun = transfers_->BeginTransfer(id, ticket, {blocks.begin(), blocks.end()});
  if (!begun.ok()) return begun;
  for (const BlockId block : blocks) pool_->Reference(block);
  moves_[id] = {.key = sequence.key,
                .nonce = ticket.nonce.low,
                .pinned = {blocks.begin(), blocks.end()},
                .began = now};
  absl::Status sent =
      transfers_->PushTransfer(id, {0, executor_->arena().layout().layers}, {0, sent_tokens});
  if (sent.ok()) sent = transfers_->CommitTransfer(id, std::move(first));
  if (!sent.ok()) {
    transfers_->AbortTransfer(id);
    return sent;
  }
  slot.move = id;
  SetState(slot, State::kMoving);
  return absl::OkStatus();
}

void DecodeEngine::OnMoved(const TransferAcked& acked, Instant now) {
  const Slot* slot = FindByMove(acked.id);
  if (slot == nullptr) return;
  ++stats_.moved;
  const RequestKey key = slot->sequence.key;
  v1::Event event;
  v1::Migrated* migrated = event.mutable_migrated();
  migrated->set_request(Raw(key.request));
  migrated->set_nonce(moves_.at(acked.id).nonce);
  migrated->set_transfer_ms(ToMilliseconds(now - moves_.at(acked.id).began));
  migrated->set_bytes_sent(acked.bytes);
  events_->Send(key.router, std::move(event));
  Drop(key);
}

// The sequence runs on here.
void DecodeEngine::OnMoveFailed(const TransferFailed& failed, Instant now) {
  Slot* slot = FindByMove(failed.id);
  if (slot == nullptr) return;
  SetState(*slot, State::kRunning);
  SayMoveFailed(*slot, moves_.at(failed.id).nonce, failed.status, /*transfer=*/true);
  BeginMoveIfDue(*slot, now);
}

void DecodeEngine::SayMoveFailed(const Slot& slot, uint64_t nonce, const absl::Status& status,
                                 bool transfer) {
  v1::Event event;
  v1::MigrateFailed* failed = event.mutable_migrate_failed();
  failed->set_request(Raw(slot.sequence.key.request));
  failed->set_nonce(nonce);
  SetWireStatus(status, failed);
  failed->set_transfer(transfer);
  events_->Send(slot.sequence.key.router, std::move(event));
}

void DecodeEngine::ReleaseMove(TransferId id) {
  const auto move = moves_.find(id);
  BATON_CHECK(move != moves_.end());
  // The tail first, as BlockTable does.
  for (auto block = move->second.pinned.rbegin(); block != move->second.pinned.rend(); ++block) {
    pool_->Release(*block);
  }
  moves_.erase(move);
}

DecodeEngine::Slot* DecodeEngine::FindByMove(TransferId id) {
  const auto move = moves_.find(id);
  Slot* slot = move == moves_.end() ? nullptr : Find(move->second.key);
  return slot != nullptr && slot->state == State::kMoving && slot->move == id ? slot : nullptr;
}

void DecodeEngine::RememberToken(Slot& slot, const v1::Token& token) {
  if (!slot.sequence.sampling.logprobs.has_value()) return;
  if (slot.said_tokens.size() == kSaidTokensMax) slot.said_tokens.pop_front();
  slot.said_tokens.push_back(token.SerializeAsString());
}

}  // namespace baton
