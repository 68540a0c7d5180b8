// D's side of the handoff: takes KV messages into the blocks of a lease's epoch, and says when it
// is filled and when nothing lands in them any more.
//
// A message is checked against its lease before a byte moves: the right nonce and epoch, an epoch
// that still takes bytes, rows inside [held, prompt) that nobody has claimed, the right size. What
// matches no lease costs nothing and changes nothing. What finds no room on its way to the blocks
// (see kv_staging.h) is postponed: it stays with its sender, whose window of bytes under way slows
// it down. To refuse it would fail whole transfers just when the worker is busiest. See "D's lease"
// in ARCHITECTURE.md.
//
// Single-threaded, without a clock: the owner passes the time in, and polls the transport.
#ifndef BATON_COMMON_KV_TRANSFER_KV_RECEIVER_H_
#define BATON_COMMON_KV_TRANSFER_KV_RECEIVER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/handoff_codec.h"
#include "common/kv_transfer/kv_pieces.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_event.h"
#include "common/transport/transport.h"

namespace baton {

struct KvReceiverOptions {
  // How long a retired epoch waits for its posted receives before the peers' connections are
  // closed.
  Duration force_close_after = std::chrono::seconds(2);
};

class KvReceiver {
 public:
  // Totals.
  struct Counters {
    uint64_t messages = 0;  // KV messages that landed well, and their bytes.
    uint64_t bytes = 0;
    uint64_t filled = 0;
    uint64_t failed = 0;
    uint64_t force_closes = 0;
    uint64_t refused_malformed = 0;
    uint64_t refused_unknown_lease = 0;
    uint64_t refused_stale = 0;
    uint64_t refused_range = 0;
    uint64_t refused_overlap = 0;
    uint64_t refused_size = 0;
    uint64_t checksum_mismatches = 0;
  };

  // Whether a grant fits the arena. kInvalidArgument says why not.
  static absl::Status CheckGrant(const KvArena& arena, const LeaseGrant& grant);

  // Takes the transport's handoff messages to D. `catch_up` is called before a lease counts as
  // unknown; it may Open and Retire. All references outlive the receiver; the transport is closed
  // before it, or never polled again.
  KvReceiver(Transport& transport, KvStaging& staging, const KvReceiverOptions& options,
             TransferEventSink sink, std::function<void()> catch_up);
  KvReceiver(const KvReceiver&) = delete;
  KvReceiver& operator=(const KvReceiver&) = delete;

  // REQUIRES: CheckGrant is OK; the lease's earlier epochs are lower and retired.
  void Open(const LeaseGrant& grant);
  // Posts no receive for this epoch any more; LeaseQuiesced follows, here or later.
  // REQUIRES: open and not retired.
  void Retire(LeaseId lease, Epoch epoch, Instant now);
  // Retires what is not retired.
  void RetireAll(Instant now);

  void Tick(Instant now);
  // When Tick has something to do; kNever.
  Instant next_deadline() const;

  const Counters& counters() const { return counters_; }
  // Epochs that are not quiesced.
  size_t open_count() const { return epochs_.size(); }
  uint32_t posted_count() const { return posted_count_; }

 private:
  using EpochKey = std::pair<LeaseId, Epoch>;
  enum class Phase { kOpen, kFilled, kFailed, kAborted };
  struct Committed {
    PeerId from{};
    CommitMessage message;
  };
  struct EpochState {
    EpochState(const KvLayout& layout, LeaseGrant lease_grant)
        : grant(std::move(lease_grant)),
          coverage(layout, {grant.held_tokens, grant.prompt_tokens}) {}

    const LeaseGrant grant;
    Phase phase = Phase::kOpen;
    NakReason failure = NakReason::kReceiveFailed;  // When failed.
    KvCoverage coverage;                            // Landed or posted.
    uint64_t landed_cells = 0;
    uint64_t accepted_messages = 0;
    uint64_t refused_messages = 0;
    uint64_t accepted_bytes = 0;
    uint32_t posted = 0;
    std::map<PeerId, uint32_t> posted_by;
    std::vector<Committed> commits;  // One per rank.
    bool retired = false;
    Instant force_close_at = kNever;
  };

  std::optional<Landing> OnKv(const IncomingMessage& incoming);
  void OnCommit(const IncomingMessage& incoming);
  void OnAbort(const IncomingMessage& incoming);
  void OnLanded(EpochKey key, PeerId from, const KvMessage& message, const StagedPiece& staged,
                const absl::Status& status);
  absl::StatusOr<uint64_t> ChecksumOfLanded(const KvMessage& message,
                                            const StagedPiece& staged) const;
  void TakeLanded(EpochState& state, PeerId from, const KvMessage& message,
                  const StagedPiece& staged, const absl::Status& status);

  EpochState* Find(const EpochName& name);
  NakReason WhyUnknown(const EpochName& name) const;
  bool Check(const EpochState& state, const KvMessage& message, size_t payload_bytes);
  std::optional<Landing> Refuse(EpochState& state);
  void TakeCommit(EpochState& state, PeerId from, CommitMessage message);
  void FinishIfComplete(EpochState& state);
  void Fill(EpochState& state);
  void Fail(EpochState& state, NakReason reason, const absl::Status& status);
  void QuiesceIfIdle(EpochKey key);
  void SendAck(PeerId to, const EpochName& name);
  void SendNak(PeerId to, const EpochName& name, NakReason reason);

  Transport& transport_;
  KvStaging& staging_;
  const KvArena& arena_;
  const KvReceiverOptions options_;
  const TransferEventSink sink_;
  const std::function<void()> catch_up_;
  std::map<EpochKey, EpochState> epochs_;
  uint32_t posted_count_ = 0;
  Counters counters_;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_KV_RECEIVER_H_
