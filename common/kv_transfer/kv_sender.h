// P's side of the handoff: pushes a sequence's KV into the blocks that a ticket promises, and says
// when the source blocks are read no more.
//
// A push is split into messages that are gathered straight from the blocks, or from a copy of them
// (see kv_staging.h); to one peer only so many bytes are under way, the rest waits inside, in
// order. So does what finds no room for its copy, and the peers take turns. The transfer ends once:
// acknowledged, failed or aborted. Only when also every send has completed is it released: until
// then the transport may read the blocks. See "P's transfer" in ARCHITECTURE.md.
//
// Single-threaded, without a clock: the owner passes the time in, and polls the transport.
#ifndef BATON_COMMON_KV_TRANSFER_KV_SENDER_H_
#define BATON_COMMON_KV_TRANSFER_KV_SENDER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/handoff_codec.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_event.h"
#include "common/transport/transport.h"

namespace baton {

struct KvSenderOptions {
  size_t in_flight_bytes_max = size_t{64} << 20;  // Per peer; one message always goes.
  size_t message_bytes_max = size_t{8} << 20;     // As far as one layer of one block allows.
  Duration transfer_deadline = std::chrono::seconds(10);  // Without progress.
  // How long sends of an ended transfer may stay under way before the connection is closed.
  Duration force_close_after = std::chrono::seconds(2);
};

class KvSender {
 public:
  // Totals.
  struct Counters {
    uint64_t messages = 0;  // KV messages given to the transport, and their bytes.
    uint64_t bytes = 0;
    uint64_t acked = 0;
    uint64_t failed = 0;
    uint64_t force_closes = 0;
    uint64_t refused_malformed = 0;  // Answers that are none.
  };

  // Whether a ticket fits the arena and the source. kInvalidArgument says why not.
  static absl::Status CheckTicket(const KvArena& arena, const Ticket& ticket,
                                  const std::vector<BlockId>& blocks, const TransferShare& share);

  // Takes the transport's handoff messages to P. All references outlive the sender; the transport
  // is closed before it, or never polled again.
  KvSender(Transport& transport, KvStaging& staging, const KvSenderOptions& options,
           TransferEventSink sink);
  KvSender(const KvSender&) = delete;
  KvSender& operator=(const KvSender&) = delete;

  // As TransferAgent's methods of like names. REQUIRES: CheckTicket is OK; `id` is new.
  void Begin(TransferId id, Ticket ticket, std::vector<BlockId> blocks, TransferShare share,
             Instant now);
  // REQUIRES: the ranges lie within the layout and the ticket; not after Commit.
  void Push(TransferId id, IndexRange layers, IndexRange tokens, Instant now);
  void Commit(TransferId id, CommittedToken first_token, Instant now);
  void Abort(TransferId id, Instant now);
  // Fails what has not ended.
  void FailAll(const absl::Status& status, Instant now);

  // From Transport::OnPeerLost, which others use too.
  void OnPeerLost(PeerId peer, const absl::Status& status);

  void Tick(Instant now);
  // When Tick has something to do; kNever.
  Instant next_deadline() const;

  const Counters& counters() const { return counters_; }
  // Transfers that are not released.
  size_t open_count() const { return transfers_.size(); }
  uint64_t in_flight_bytes() const { return in_flight_bytes_; }

 private:
  struct Transfer {
    Ticket ticket;
    std::vector<BlockId> blocks;
    TransferShare share;
    PeerId peer{};
    bool ended = false;
    bool commit_sent = false;
    std::optional<CommittedToken> first_token;  // Since Commit.
    uint32_t sends = 0;                         // Under way, reading the blocks.
    uint64_t messages = 0;
    uint64_t bytes = 0;
    Instant begun_at;
    Instant committed_at;
    // Of the transfer; once it has ended, of its sends.
    Instant deadline = kNever;
  };
  using Transfers = std::map<TransferId, Transfer>;
  // A message that waits for its turn; without a piece: the commit.
  struct Waiting {
    TransferId id{};
    std::optional<KvPiece> piece;
  };
  struct Peer {
    std::deque<Waiting> queue;
    uint64_t in_flight_bytes = 0;
    Instant read_at{};  // When it last took something.
  };
  // Identifies a transfer in D's answers.
  using AnswerKey = std::tuple<LeaseId, uint64_t, uint64_t, Epoch, uint32_t>;

  static EpochName NameOf(const Transfer& transfer);
  static AnswerKey KeyOf(const EpochName& name);
  Transfer* FindActive(TransferId id);
  // Something of it waits to be sent, is being sent, or has to be answered.
  bool IsUnderWay(TransferId id, const Transfer& transfer) const;

  // Until when a transfer of which everything waits behind others has time: those are being read.
  Instant DeadlineInLine(const Transfer& transfer) const;

  std::vector<IndexRange> SplitHeads(const Transfer& transfer) const;
  void Pump(PeerId peer);
  bool SendReady(PeerId peer_id, Peer& peer);
  void PumpLine();
  std::optional<StagedPiece> Stage(PeerId peer, const Transfer& transfer, const KvPiece& piece);
  absl::StatusOr<KvMessage> Fetch(const Transfer& transfer, const KvPiece& piece,
                                  const StagedPiece& staged);
  void SendPiece(TransferId id, Transfer& transfer, const KvMessage& message, StagedPiece staged);
  void SendCommit(TransferId id, Transfer& transfer);
  void SendAbort(const Transfer& transfer);
  void OnSent(TransferId id, PeerId peer, const StagedPiece& staged, const absl::Status& status);
  void OnAck(const IncomingMessage& incoming);
  void OnNak(const IncomingMessage& incoming);
  Transfer* FindAnswered(const EpochName& name, TransferId& id);
  void Fail(TransferId id, Transfer& transfer, const absl::Status& status, bool retryable);
  void Report(TransferId id, Transfer& transfer, const absl::Status& status, bool retryable);
  void End(TransferId id, Transfer& transfer);
  void Close(TransferId id, Transfer& transfer);
  void ReleaseIfIdle(TransferId id);

  Transport& transport_;
  KvStaging& staging_;
  const KvArena& arena_;
  const KvSenderOptions options_;
  const TransferEventSink sink_;
  Transfers transfers_;
  std::map<AnswerKey, TransferId> by_answer_;  // Of transfers that have not ended.
  std::map<PeerId, Peer> peers_;               // Those with something queued or in flight.
  std::deque<PeerId> line_;                    // Those whose next piece finds no room, in turn.
  uint64_t in_flight_bytes_ = 0;
  Instant read_at_{};  // When any peer last took something.
  Instant now_{};      // As last passed in: callbacks of the transport bring no time.
  Counters counters_;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_KV_SENDER_H_
