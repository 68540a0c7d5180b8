#include "common/kv_transfer/kv_sender.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/kv_transfer/kv_pieces.h"

namespace baton {
namespace {

MessageType TypeOf(HandoffType type) { return static_cast<MessageType>(type); }

}  // namespace

absl::Status KvSender::CheckTicket(const KvArena& arena, const Ticket& ticket,
                                   const std::vector<BlockId>& blocks, const TransferShare& share) {
  const KvLayout& layout = arena.layout();
  if (ticket.layout_fingerprint != layout.Fingerprint()) {
    return absl::InvalidArgumentError("the ticket is for another KV layout");
  }
  if (ticket.held_tokens >= ticket.prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("a ticket for ", ticket.prompt_tokens,
                                                   " tokens, of which ", ticket.held_tokens,
                                                   " are held: nothing is left to send"));
  }
  if (blocks.size() < layout.BlocksFor(ticket.prompt_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat(blocks.size(), " blocks for ", ticket.prompt_tokens, " tokens, ",
                     layout.BlocksFor(ticket.prompt_tokens), " are needed"));
  }
  for (const BlockId block : blocks) {
    if (Raw(block) >= arena.block_count()) {
      return absl::InvalidArgumentError(absl::StrCat("there is no block ", Raw(block)));
    }
  }
  if (share.rank >= share.rank_count || share.rank_count > TransferShare::kRankCountMax ||
      share.head_end > layout.kv_heads ||
      (share.head_end != 0 && share.head_begin >= share.head_end) ||
      share.head_begin >= layout.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", share.rank, " of ", share.rank_count,
                                                   " with heads ", share.head_begin, " to ",
                                                   share.head_end, " of ", layout.kv_heads));
  }
  return absl::OkStatus();
}

KvSender::KvSender(Transport& transport, KvStaging& staging, const KvSenderOptions& options,
                   TransferEventSink sink)
    : transport_(transport),
      staging_(staging),
      arena_(staging.arena()),
      options_(options),
      sink_(std::move(sink)) {
  transport_.OnMessage(TypeOf(HandoffType::kAck), [this](const IncomingMessage& message) {
    OnAck(message);
    return std::nullopt;
  });
  transport_.OnMessage(TypeOf(HandoffType::kNak), [this](const IncomingMessage& message) {
    OnNak(message);
    return std::nullopt;
  });
}

EpochName KvSender::NameOf(const Transfer& transfer) {
  const Ticket& ticket = transfer.ticket;
  return {ticket.lease, ticket.nonce, ticket.epoch, transfer.share.rank};
}

KvSender::AnswerKey KvSender::KeyOf(const EpochName& name) {
  return {name.lease, name.nonce.high, name.nonce.low, name.epoch, name.rank};
}

KvSender::Transfer* KvSender::FindActive(TransferId id) {
  const auto found = transfers_.find(id);
  return found == transfers_.end() || found->second.ended ? nullptr : &found->second;
}

void KvSender::Begin(TransferId id, Ticket ticket, std::vector<BlockId> blocks, TransferShare share,
                     Instant now) {
  now_ = now;
  if (share.head_end == 0) share.head_end = arena_.layout().kv_heads;
  const auto [it, inserted] = transfers_.try_emplace(id);
  BATON_CHECK_MSG(inserted, absl::StrCat("transfer ", Raw(id)));
  Transfer& transfer = it->second;
  transfer.ticket = std::move(ticket);
  transfer.blocks = std::move(blocks);
  transfer.share = share;
  transfer.begun_at = now;
  transfer.deadline = now + options_.transfer_deadline;
  if (!by_answer_.emplace(KeyOf(NameOf(transfer)), id).second) {
    return Fail(id, transfer,
                absl::AlreadyExistsError("another transfer fills this epoch of the lease"), false);
  }
  const absl::StatusOr<PeerId> peer = transport_.Connect(transfer.ticket.address);
  if (!peer.ok()) {
    return Fail(id, transfer, peer.status(), absl::IsUnavailable(peer.status()));
  }
  transfer.peer = *peer;
}

void KvSender::Push(TransferId id, IndexRange layers, IndexRange tokens, Instant now) {
  now_ = now;
  Transfer* transfer = FindActive(id);
  if (transfer == nullptr) return;
  BATON_CHECK_MSG(!transfer->first_token, absl::StrCat("transfer ", Raw(id)));
  BATON_CHECK(layers.end <= arena_.layout().layers && tokens.end <= transfer->ticket.prompt_tokens);
  tokens.begin = std::max(tokens.begin, transfer->ticket.held_tokens);
  if (tokens.begin >= tokens.end || layers.begin >= layers.end) return;
  Peer& peer = peers_[transfer->peer];
  const size_t bytes_max = std::min(options_.message_bytes_max, staging_.piece_bytes_max());
  std::vector<std::vector<KvPiece>> of_heads;
  size_t longest = 0;
  for (const IndexRange& heads : SplitHeads(*transfer)) {
    of_heads.push_back(SplitPush(arena_.layout(), {layers, tokens, heads}, bytes_max));
    longest = std::max(longest, of_heads.back().size());
  }
  // In turn, so that all devices have something to do.
  for (size_t i = 0; i < longest; ++i) {
    for (const std::vector<KvPiece>& pieces : of_heads) {
      if (i < pieces.size()) peer.queue.push_back({id, pieces[i]});
    }
  }
  transfer->deadline = now + options_.transfer_deadline;
  Pump(transfer->peer);
}

// A message has heads of one device, here and at D: it is copied from there, and to there, in one
// go.
std::vector<IndexRange> KvSender::SplitHeads(const Transfer& transfer) const {
  const uint32_t ours = arena_.shard_layout().kv_heads;
  const uint32_t said = transfer.ticket.shard_heads;
  const uint32_t theirs = said == 0 ? arena_.layout().kv_heads : said;
  std::vector<IndexRange> ranges;
  for (uint32_t head = transfer.share.head_begin; head < transfer.share.head_end;) {
    const uint32_t end =
        std::min({transfer.share.head_end, (head / ours + 1) * ours, (head / theirs + 1) * theirs});
    ranges.push_back({head, end});
    head = end;
  }
  return ranges;
}

void KvSender::Commit(TransferId id, CommittedToken first_token, Instant now) {
  now_ = now;
  Transfer* transfer = FindActive(id);
  if (transfer == nullptr) return;
  BATON_CHECK_MSG(!transfer->first_token, absl::StrCat("transfer ", Raw(id)));
  transfer->first_token = std::move(first_token);
  transfer->committed_at = now;
  transfer->deadline = now + options_.transfer_deadline;
  peers_[transfer->peer].queue.push_back({id, std::nullopt});
  Pump(transfer->peer);
}

void KvSender::Abort(TransferId id, Instant now) {
  now_ = now;
  Transfer* transfer = FindActive(id);
  if (transfer == nullptr) return;
  SendAbort(*transfer);
  End(id, *transfer);
}

void KvSender::FailAll(const absl::Status& status, Instant now) {
  now_ = now;
  std::vector<TransferId> ids;
  for (const auto& [id, transfer] : transfers_) {
    if (!transfer.ended) ids.push_back(id);
  }
  for (const TransferId id : ids) {
    if (Transfer* transfer = FindActive(id); transfer != nullptr) {
      Fail(id, *transfer, status, /*retryable=*/true);
    }
  }
}

void KvSender::OnPeerLost(PeerId peer, const absl::Status& status) {
  std::vector<TransferId> ids;
  for (const auto& [id, transfer] : transfers_) {
    if (transfer.peer == peer && !transfer.ended) ids.push_back(id);
  }
  const absl::Status lost = absl::UnavailableError(
      absl::StrCat("the decode worker is lost: ", std::string(status.message())));
  for (const TransferId id : ids) {
    if (Transfer* transfer = FindActive(id); transfer != nullptr) {
      Fail(id, *transfer, lost, /*retryable=*/true);
    }
  }
}

void KvSender::Tick(Instant now) {
  now_ = now;
  std::vector<TransferId> late;
  std::vector<PeerId> stuck;
  for (auto& [id, transfer] : transfers_) {
    if (now < transfer.deadline) continue;
    if (transfer.ended) {
      transfer.deadline = now + options_.force_close_after;
      stuck.push_back(transfer.peer);
    } else if (!IsUnderWay(id, transfer)) {
      transfer.deadline = now + options_.transfer_deadline;  // The prompt is being computed.
    } else if (const Instant in_line = DeadlineInLine(transfer); now < in_line) {
      transfer.deadline = in_line;
    } else {
      late.push_back(id);
    }
  }
  for (const TransferId id : late) {
    if (Transfer* transfer = FindActive(id); transfer != nullptr) {
      SendAbort(*transfer);
      Fail(id, *transfer, absl::DeadlineExceededError("the transfer took too long"), true);
    }
  }
  std::sort(stuck.begin(), stuck.end());
  stuck.erase(std::unique(stuck.begin(), stuck.end()), stuck.end());
  for (const PeerId peer : stuck) {
    transport_.ForceClose(peer);
    ++counters_.force_closes;
  }
}

bool KvSender::IsUnderWay(TransferId id, const Transfer& transfer) const {
  if (transfer.first_token || transfer.sends > 0) return true;
  const auto peer = peers_.find(transfer.peer);
  if (peer == peers_.end()) return false;
  const auto& queue = peer->second.queue;
  return std::any_of(queue.begin(), queue.end(),
                     [id](const Waiting& waiting) { return waiting.id == id; });
}

Instant KvSender::DeadlineInLine(const Transfer& transfer) const {
  const auto found = peers_.find(transfer.peer);
  if (transfer.sends > 0 || transfer.commit_sent || found == peers_.end()) return {};
  // With nothing in flight to its peer it waits for staging that others have.
  const Peer& peer = found->second;
  return (peer.in_flight_bytes > 0 ? peer.read_at : read_at_) + options_.transfer_deadline;
}

Instant KvSender::next_deadline() const {
  Instant next = kNever;
  for (const auto& [id, transfer] : transfers_) next = std::min(next, transfer.deadline);
  return next;
}

// Sends what may go to a peer now.
void KvSender::Pump(PeerId peer_id) {
  const auto found = peers_.find(peer_id);
  if (found == peers_.end()) return;
  if (SendReady(peer_id, found->second)) std::erase(line_, peer_id);
  if (found->second.queue.empty() && found->second.in_flight_bytes == 0) peers_.erase(found);
}

// False: it stands in line for room.
bool KvSender::SendReady(PeerId peer_id, Peer& peer) {
  while (!peer.queue.empty()) {
    const Waiting next = peer.queue.front();
    Transfer& transfer = transfers_.at(next.id);  // An ended one has nothing in the queue.
    if (!next.piece) {
      peer.queue.pop_front();
      SendCommit(next.id, transfer);
      continue;
    }
    const uint64_t bytes = PieceBytes(arena_.layout(), *next.piece);
    if (peer.in_flight_bytes > 0 && peer.in_flight_bytes + bytes > options_.in_flight_bytes_max) {
      return true;
    }
    std::optional<StagedPiece> staged = Stage(peer_id, transfer, *next.piece);
    if (!staged) return false;
    peer.queue.pop_front();
    const absl::StatusOr<KvMessage> message = Fetch(transfer, *next.piece, *staged);
    if (!message.ok()) {
      staging_.Release(*staged);
      SendAbort(transfer);
      Report(next.id, transfer, message.status(), /*retryable=*/true);
      Close(next.id, transfer);
      continue;
    }
    peer.in_flight_bytes += bytes;
    in_flight_bytes_ += bytes;
    SendPiece(next.id, transfer, *message, *std::move(staged));
  }
  return true;
}

// Room for a piece, if it is this peer's turn; a turn is one piece.
std::optional<StagedPiece> KvSender::Stage(PeerId peer, const Transfer& transfer,
                                           const KvPiece& piece) {
  std::optional<StagedPiece> staged;
  if (line_.empty() || line_.front() == peer) staged = staging_.Take(transfer.blocks, piece);
  if (staged) {
    if (!line_.empty()) line_.pop_front();
  } else if (std::find(line_.begin(), line_.end(), peer) == line_.end()) {
    line_.push_back(peer);
  }
  return staged;
}

// Room has become free.
void KvSender::PumpLine() {
  while (!line_.empty()) {
    const PeerId first = line_.front();
    Pump(first);
    // Not enough for its piece: it keeps its turn, so that no smaller one overtakes it for ever.
    if (!line_.empty() && line_.front() == first) return;
  }
}

// The piece's bytes to where the transport takes them from, and what to say about them.
absl::StatusOr<KvMessage> KvSender::Fetch(const Transfer& transfer, const KvPiece& piece,
                                          const StagedPiece& staged) {
  BATON_RETURN_IF_ERROR(staging_.Fetch(staged));
  KvMessage message;
  message.name = NameOf(transfer);
  message.piece = piece;
  message.payload_bytes = PieceBytes(arena_.layout(), piece);
  message.checked_bytes = staging_.CheckedBytes(message.payload_bytes);
  BATON_ASSIGN_OR_RETURN(message.checksum, staging_.Checksum(staged, message.checked_bytes));
  return message;
}

void KvSender::SendPiece(TransferId id, Transfer& transfer, const KvMessage& message,
                         StagedPiece staged) {
  // However long it stood in line.
  if (transfer.sends == 0) transfer.deadline = now_ + options_.transfer_deadline;
  ++transfer.sends;
  ++transfer.messages;
  transfer.bytes += message.payload_bytes;
  ++counters_.messages;
  counters_.bytes += message.payload_bytes;
  std::vector<ConstSpan> payload(staged.wire.begin(), staged.wire.end());
  transport_.Send(transfer.peer, TypeOf(HandoffType::kKv), Encode(message), std::move(payload),
                  [this, id, peer = transfer.peer, staged = std::move(staged)](
                      const absl::Status& status) { OnSent(id, peer, staged, status); });
}

void KvSender::SendCommit(TransferId id, Transfer& transfer) {
  CommitMessage message;
  message.name = NameOf(transfer);
  message.rank_count = transfer.share.rank_count;
  message.message_count = transfer.messages;
  message.byte_count = transfer.bytes;
  message.first_token = *transfer.first_token;
  transfer.commit_sent = true;
  transfer.deadline = now_ + options_.transfer_deadline;
  transport_.Send(transfer.peer, TypeOf(HandoffType::kCommit), Encode(message), {},
                  [this, id](const absl::Status& status) {
                    Transfer* active = FindActive(id);
                    if (status.ok() || active == nullptr) return;
                    Fail(id, *active, status, /*retryable=*/true);
                  });
}

// Whether it arrives or not, D ends the epoch sooner or later.
void KvSender::SendAbort(const Transfer& transfer) {
  transport_.Send(transfer.peer, TypeOf(HandoffType::kAbort),
                  Encode(AbortMessage{NameOf(transfer)}), {}, [](const absl::Status&) {});
}

void KvSender::OnSent(TransferId id, PeerId peer_id, const StagedPiece& staged,
                      const absl::Status& status) {
  const size_t bytes = TotalBytes(staged.wire);
  staging_.Release(staged);
  in_flight_bytes_ -= bytes;
  peers_.at(peer_id).in_flight_bytes -= bytes;
  Transfer& transfer = transfers_.at(id);  // Sends keep it.
  --transfer.sends;
  if (status.ok()) {  // D reads, if slowly.
    read_at_ = peers_.at(peer_id).read_at = now_;
    transfer.deadline =
        now_ + (transfer.ended ? options_.force_close_after : options_.transfer_deadline);
  }
  if (!transfer.ended && !status.ok()) {
    Fail(id, transfer, status, /*retryable=*/true);
  } else {
    ReleaseIfIdle(id);
  }
  PumpLine();
  Pump(peer_id);
}

KvSender::Transfer* KvSender::FindAnswered(const EpochName& name, TransferId& id) {
  const auto found = by_answer_.find(KeyOf(name));
  if (found == by_answer_.end()) return nullptr;
  id = found->second;
  return FindActive(id);
}

void KvSender::OnAck(const IncomingMessage& incoming) {
  const std::optional<AckMessage> message = DecodeAck(incoming.header);
  if (!message) {
    ++counters_.refused_malformed;
    return;
  }
  TransferId id{};
  Transfer* transfer = FindAnswered(message->name, id);
  if (transfer == nullptr || !transfer->commit_sent) return;
  ++counters_.acked;
  transfer->ended = true;  // First: the sink must not find the transfer active.
  sink_(
      TransferAcked{id, transfer->bytes, now_ - transfer->begun_at, now_ - transfer->committed_at});
  End(id, *transfer);
}

void KvSender::OnNak(const IncomingMessage& incoming) {
  const std::optional<NakMessage> message = DecodeNak(incoming.header);
  if (!message) {
    ++counters_.refused_malformed;
    return;
  }
  TransferId id{};
  Transfer* transfer = FindAnswered(message->name, id);
  if (transfer == nullptr) return;
  Fail(id, *transfer, NakStatus(message->reason), IsRetryable(message->reason));
}

void KvSender::Fail(TransferId id, Transfer& transfer, const absl::Status& status, bool retryable) {
  Report(id, transfer, status, retryable);
  End(id, transfer);
}

void KvSender::Report(TransferId id, Transfer& transfer, const absl::Status& status,
                      bool retryable) {
  ++counters_.failed;
  // First: the sink must not find the transfer active.
  transfer.ended = true;
  sink_(TransferFailed{id, status, retryable});
}

void KvSender::End(TransferId id, Transfer& transfer) {
  const PeerId peer = transfer.peer;
  Close(id, transfer);
  Pump(peer);
}

// Takes it out of everything but the sends under way.
void KvSender::Close(TransferId id, Transfer& transfer) {
  transfer.ended = true;
  transfer.deadline = now_ + options_.force_close_after;
  const auto answer = by_answer_.find(KeyOf(NameOf(transfer)));
  if (answer != by_answer_.end() && answer->second == id) by_answer_.erase(answer);
  if (const auto found = peers_.find(transfer.peer); found != peers_.end()) {
    std::erase_if(found->second.queue, [id](const Waiting& waiting) { return waiting.id == id; });
  }
  ReleaseIfIdle(id);
}

void KvSender::ReleaseIfIdle(TransferId id) {
  const auto found = transfers_.find(id);
  if (found == transfers_.end() || !found->second.ended || found->second.sends > 0) return;
  transfers_.erase(found);
  sink_(TransferReleased{id});
}

}  // namespace baton
