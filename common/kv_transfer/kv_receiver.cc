#include "common/kv_transfer/kv_receiver.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

MessageType TypeOf(HandoffType type) { return static_cast<MessageType>(type); }

}  // namespace

absl::Status KvReceiver::CheckGrant(const KvArena& arena, const LeaseGrant& grant) {
  const KvLayout& layout = arena.layout();
  if (grant.held_tokens >= grant.prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("a lease of ", grant.prompt_tokens,
                                                   " tokens holds ", grant.held_tokens,
                                                   " already: nothing is left to send"));
  }
  if (grant.held_tokens % layout.block_tokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "held tokens (", grant.held_tokens, ") are not whole blocks of ", layout.block_tokens));
  }
  if (grant.blocks.size() != layout.BlocksFor(grant.prompt_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat(grant.blocks.size(), " blocks for ", grant.prompt_tokens, " tokens, ",
                     layout.BlocksFor(grant.prompt_tokens), " are needed"));
  }
  for (const BlockId block : grant.blocks) {
    if (Raw(block) >= arena.block_count()) {
      return absl::InvalidArgumentError(absl::StrCat("there is no block ", Raw(block)));
    }
  }
  return absl::OkStatus();
}

KvReceiver::KvReceiver(Transport& transport, KvStaging& staging, const KvReceiverOptions& options,
                       TransferEventSink sink, std::function<void()> catch_up)
    : transport_(transport),
      staging_(staging),
      arena_(staging.arena()),
      options_(options),
      sink_(std::move(sink)),
      catch_up_(std::move(catch_up)) {
  transport_.OnMessage(TypeOf(HandoffType::kKv),
                       [this](const IncomingMessage& message) { return OnKv(message); });
  transport_.OnMessage(TypeOf(HandoffType::kCommit), [this](const IncomingMessage& message) {
    OnCommit(message);
    return std::nullopt;
  });
  transport_.OnMessage(TypeOf(HandoffType::kAbort), [this](const IncomingMessage& message) {
    OnAbort(message);
    return std::nullopt;
  });
}

void KvReceiver::Open(const LeaseGrant& grant) {
  BATON_CHECK_OK(CheckGrant(arena_, grant));
  const EpochKey key{grant.lease, grant.epoch};
  for (auto it = epochs_.lower_bound({grant.lease, Epoch{0}});
       it != epochs_.end() && it->first.first == grant.lease; ++it) {
    BATON_CHECK_MSG(it->second.retired && it->first.second < grant.epoch,
                    absl::StrCat("lease ", Raw(grant.lease), " epoch ", Raw(grant.epoch)));
  }
  epochs_.try_emplace(key, arena_.layout(), grant);
}

void KvReceiver::Retire(LeaseId lease, Epoch epoch, Instant now) {
  const auto found = epochs_.find({lease, epoch});
  BATON_CHECK_MSG(found != epochs_.end() && !found->second.retired,
                  absl::StrCat("lease ", Raw(lease), " epoch ", Raw(epoch)));
  found->second.retired = true;
  found->second.force_close_at = now + options_.force_close_after;
  QuiesceIfIdle(found->first);
}

void KvReceiver::RetireAll(Instant now) {
  std::vector<EpochKey> keys;
  for (const auto& [key, state] : epochs_) {
    if (!state.retired) keys.push_back(key);
  }
  for (const auto& [lease, epoch] : keys) Retire(lease, epoch, now);
}

void KvReceiver::Tick(Instant now) {
  for (auto& [key, state] : epochs_) {
    if (!state.retired || now < state.force_close_at) continue;
    // Its receives complete from the transport's next Poll(), one by one.
    for (const auto& [peer, unused] : state.posted_by) {
      transport_.ForceClose(peer);
      ++counters_.force_closes;
    }
    state.force_close_at = now + options_.force_close_after;
  }
}

Instant KvReceiver::next_deadline() const {
  Instant next = kNever;
  for (const auto& [key, state] : epochs_) {
    if (state.retired) next = std::min(next, state.force_close_at);
  }
  return next;
}

KvReceiver::EpochState* KvReceiver::Find(const EpochName& name) {
  for (const bool caught_up : {false, true}) {
    const auto found = epochs_.find({name.lease, name.epoch});
    if (found != epochs_.end()) {
      return found->second.grant.nonce == name.nonce ? &found->second : nullptr;
    }
    if (!caught_up) catch_up_();
  }
  return nullptr;
}

NakReason KvReceiver::WhyUnknown(const EpochName& name) const {
  const auto next = epochs_.lower_bound({name.lease, Epoch{0}});
  return next != epochs_.end() && next->first.first == name.lease ? NakReason::kStale
                                                                  : NakReason::kUnknownLease;
}

std::optional<Landing> KvReceiver::OnKv(const IncomingMessage& incoming) {
  const std::optional<KvMessage> message = DecodeKv(incoming.header);
  if (!message) {
    ++counters_.refused_malformed;
    return std::nullopt;
  }
  EpochState* state = Find(message->name);
  if (state == nullptr) {
    ++(WhyUnknown(message->name) == NakReason::kStale ? counters_.refused_stale
                                                      : counters_.refused_unknown_lease);
    return std::nullopt;
  }
  if (state->retired || state->phase != Phase::kOpen) {
    ++counters_.refused_stale;
    return std::nullopt;
  }
  if (!Check(*state, *message, incoming.payload_bytes)) return Refuse(*state);
  std::optional<StagedPiece> staged = staging_.Take(state->grant.blocks, message->piece);
  if (!staged) return Landing{.spans = {}, .landed = nullptr, .postponed = true};
  if (!state->coverage.Claim(message->piece)) {
    ++counters_.refused_overlap;
    staging_.Release(*staged);
    return Refuse(*state);
  }
  ++state->accepted_messages;
  state->accepted_bytes += incoming.payload_bytes;
  ++state->posted;
  ++state->posted_by[incoming.from];
  ++posted_count_;
  Landing landing;
  landing.spans = staged->wire;
  if (staging_.memory() == StagingMemory::kDevice) {
    landing.copy = [this, staged = *staged](ConstSpan payload) {
      return staging_.Land(staged, payload);
    };
  }
  landing.landed = [this, key = EpochKey{message->name.lease, message->name.epoch},
                    from = incoming.from, message = *message,
                    staged = *std::move(staged)](const absl::Status& status) {
    OnLanded(key, from, message, staged, status);
  };
  return landing;
}

std::optional<Landing> KvReceiver::Refuse(EpochState& state) {
  ++state.refused_messages;
  FinishIfComplete(state);
  return std::nullopt;
}

// Whether it is within the lease, and of the right size.
bool KvReceiver::Check(const EpochState& state, const KvMessage& message, size_t payload_bytes) {
  const KvLayout& layout = arena_.layout();
  const IndexRange wanted = {state.grant.held_tokens, state.grant.prompt_tokens};
  if (!PieceFits(layout, wanted, message.piece)) {
    ++counters_.refused_range;
    return false;
  }
  if (message.payload_bytes != payload_bytes ||
      PieceBytes(layout, message.piece) != payload_bytes || message.checked_bytes == 0 ||
      message.checked_bytes > payload_bytes || !staging_.Takes(message.piece)) {
    ++counters_.refused_size;
    return false;
  }
  return true;
}

void KvReceiver::OnLanded(EpochKey key, PeerId from, const KvMessage& message,
                          const StagedPiece& staged, const absl::Status& status) {
  const auto found = epochs_.find(key);
  BATON_CHECK(found != epochs_.end() && found->second.posted > 0);
  EpochState& state = found->second;
  --posted_count_;
  --state.posted;
  if (--state.posted_by[from] == 0) state.posted_by.erase(from);
  const bool retired = state.retired;
  // Bytes that came too late end here: they are not copied into blocks that wait to be free.
  if (!retired && state.phase == Phase::kOpen) TakeLanded(state, from, message, staged, status);
  staging_.Release(staged);
  if (retired) QuiesceIfIdle(key);
}

absl::StatusOr<uint64_t> KvReceiver::ChecksumOfLanded(const KvMessage& message,
                                                      const StagedPiece& staged) const {
  BATON_RETURN_IF_ERROR(staging_.FinishLanding(staged));
  return staging_.Checksum(staged, message.checked_bytes);
}

// Its bytes are in the blocks before anybody hears of it.
void KvReceiver::TakeLanded(EpochState& state, PeerId from, const KvMessage& message,
                            const StagedPiece& staged, const absl::Status& status) {
  if (!status.ok()) {
    SendNak(from, message.name, NakReason::kReceiveFailed);
    return Fail(state, NakReason::kReceiveFailed, status);
  }
  const absl::StatusOr<uint64_t> checksum = ChecksumOfLanded(message, staged);
  if (!checksum.ok()) {
    SendNak(from, message.name, NakReason::kReceiveFailed);
    return Fail(state, NakReason::kReceiveFailed, checksum.status());
  }
  if (*checksum != message.checksum) {
    ++counters_.checksum_mismatches;
    SendNak(from, message.name, NakReason::kChecksum);
    return Fail(state, NakReason::kChecksum, absl::DataLossError("KV bytes arrived damaged"));
  }
  if (const absl::Status stored = staging_.Store(staged); !stored.ok()) {
    SendNak(from, message.name, NakReason::kReceiveFailed);
    return Fail(state, NakReason::kReceiveFailed, stored);
  }
  ++counters_.messages;
  counters_.bytes += message.payload_bytes;
  state.landed_cells += KvCoverage::CellsOf(message.piece);
  FinishIfComplete(state);
}

void KvReceiver::OnCommit(const IncomingMessage& incoming) {
  std::optional<CommitMessage> message = DecodeCommit(incoming.header);
  if (!message) {
    ++counters_.refused_malformed;
    return;
  }
  EpochState* state = Find(message->name);
  if (state == nullptr) {
    const NakReason reason = WhyUnknown(message->name);
    ++(reason == NakReason::kStale ? counters_.refused_stale : counters_.refused_unknown_lease);
    return SendNak(incoming.from, message->name, reason);
  }
  if (state->retired && state->phase != Phase::kFilled) {
    ++counters_.refused_stale;
    return SendNak(incoming.from, message->name, NakReason::kRetired);
  }
  switch (state->phase) {
    case Phase::kFilled:
      return SendAck(incoming.from, message->name);
    case Phase::kFailed:
      return SendNak(incoming.from, message->name, state->failure);
    case Phase::kAborted:
      return SendNak(incoming.from, message->name, NakReason::kAborted);
    case Phase::kOpen:
      return TakeCommit(*state, incoming.from, *std::move(message));
  }
}

void KvReceiver::TakeCommit(EpochState& state, PeerId from, CommitMessage message) {
  for (Committed& commit : state.commits) {
    if (commit.message.rank_count != message.rank_count) {
      SendNak(from, message.name, NakReason::kCountMismatch);
      return Fail(state, NakReason::kCountMismatch,
                  absl::InternalError("the ranks disagree on how many they are"));
    }
    if (commit.message.name.rank == message.name.rank) {
      commit.from = from;  // Said again, perhaps over another connection.
      return;
    }
  }
  state.commits.push_back({from, std::move(message)});
  FinishIfComplete(state);
}

void KvReceiver::FinishIfComplete(EpochState& state) {
  if (state.phase != Phase::kOpen || state.commits.empty() ||
      state.commits.size() < state.commits[0].message.rank_count) {
    return;
  }
  uint64_t messages = 0, bytes = 0;
  for (const Committed& commit : state.commits) {
    messages += commit.message.message_count;
    bytes += commit.message.byte_count;
  }
  if (state.landed_cells == state.coverage.cells()) {
    if (messages == state.accepted_messages && bytes == state.accepted_bytes) return Fill(state);
    return Fail(state, NakReason::kCountMismatch,
                absl::InternalError(absl::StrCat("the commit counts ", messages, " messages of ",
                                                 bytes, " bytes, ", state.accepted_messages, " of ",
                                                 state.accepted_bytes, " were taken")));
  }
  // What is missing cannot come any more.
  if (state.posted == 0 && state.accepted_messages + state.refused_messages >= messages) {
    Fail(state, NakReason::kIncomplete,
         absl::InternalError("all messages came, but they do not cover the lease"));
  }
}

void KvReceiver::Fill(EpochState& state) {
  state.phase = Phase::kFilled;
  ++counters_.filled;
  CommittedToken first_token;
  for (const Committed& commit : state.commits) {
    if (commit.message.name.rank == 0) first_token = commit.message.first_token;
    SendAck(commit.from, commit.message.name);
  }
  sink_(LeaseFilled{state.grant.lease, state.grant.epoch, std::move(first_token),
                    state.accepted_bytes});
}

void KvReceiver::Fail(EpochState& state, NakReason reason, const absl::Status& status) {
  state.phase = Phase::kFailed;
  state.failure = reason;
  ++counters_.failed;
  for (const Committed& commit : state.commits) SendNak(commit.from, commit.message.name, reason);
  sink_(LeaseFailed{state.grant.lease, state.grant.epoch, status, IsRetryable(reason)});
}

void KvReceiver::OnAbort(const IncomingMessage& incoming) {
  const std::optional<AbortMessage> message = DecodeAbort(incoming.header);
  if (!message) {
    ++counters_.refused_malformed;
    return;
  }
  EpochState* state = Find(message->name);
  if (state == nullptr || state->retired || state->phase != Phase::kOpen) return;
  state->phase = Phase::kAborted;
  sink_(LeaseAborted{state->grant.lease, state->grant.epoch});
}

void KvReceiver::QuiesceIfIdle(EpochKey key) {
  const auto found = epochs_.find(key);
  if (!found->second.retired || found->second.posted > 0) return;
  epochs_.erase(found);
  sink_(LeaseQuiesced{key.first, key.second});
}

void KvReceiver::SendAck(PeerId to, const EpochName& name) {
  transport_.Send(to, TypeOf(HandoffType::kAck), Encode(AckMessage{name}), {},
                  [](const absl::Status&) {});
}

void KvReceiver::SendNak(PeerId to, const EpochName& name, NakReason reason) {
  transport_.Send(to, TypeOf(HandoffType::kNak), Encode(NakMessage{name, reason}), {},
                  [](const absl::Status&) {});
}

}  // namespace baton
