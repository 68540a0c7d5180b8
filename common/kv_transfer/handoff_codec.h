// The headers of the handoff's messages: fixed little-endian structs behind a magic and a version.
//
// Decoders take bytes from anyone: nothing for what is not exactly such a message with fields in
// their bounds. Whether it fits a lease is the receiver's business.
#ifndef BATON_COMMON_KV_TRANSFER_HANDOFF_CODEC_H_
#define BATON_COMMON_KV_TRANSFER_HANDOFF_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/base/ids.h"
#include "common/kv_transfer/ticket.h"
#include "common/transport/transport.h"

namespace baton {

// The transport's message types of the handoff.
enum class HandoffType : MessageType {
  kKv = 1,          // P to D, with the KV bytes as payload.
  kCommit = 2,      // P to D.
  kAbort = 3,       // P to D.
  kAck = 4,         // D to P: the commit is taken.
  kNak = 5,         // D to P: this epoch cannot be filled.
  kProbe = 6,       // With any bytes as payload.
  kProbeReply = 7,  // The same bytes back.
  kTrial = 8,       // To oneself, before all others: see staging_choice.h.
};

// Which attempt on which lease a message is about, and by which rank of P.
struct EpochName {
  LeaseId lease{};
  Nonce nonce;
  Epoch epoch{};
  uint32_t rank = 0;

  friend bool operator==(const EpochName&, const EpochName&) = default;
};

// A box of KV rows: K and V of these layers, tokens (of the sequence) and KV heads.
struct KvPiece {
  IndexRange layers;
  IndexRange tokens;
  IndexRange heads;

  friend bool operator==(const KvPiece&, const KvPiece&) = default;
};

struct KvMessage {
  EpochName name;
  KvPiece piece;  // No range is empty.
  uint64_t payload_bytes = 0;
  // How many of the payload's first bytes, in wire order, and how many of its last the checksum
  // covers: at least 1. If that is half of it or more, all.
  uint64_t checked_bytes = 0;
  uint64_t checksum = 0;  // Their XXH3-64.
};

struct CommitMessage {
  EpochName name;
  uint32_t rank_count = 1;     // Above name.rank.
  uint64_t message_count = 0;  // KV messages of this rank.
  uint64_t byte_count = 0;     // Their payloads.
  CommittedToken first_token;
};

struct AbortMessage {
  EpochName name;
};

struct AckMessage {
  EpochName name;
};

enum class NakReason : uint32_t {
  kUnknownLease = 1,
  kStale = 2,          // Another nonce or epoch is in force.
  kRetired = 3,        // D has given this epoch up.
  kAborted = 4,        // P has.
  kChecksum = 5,       // Bytes arrived damaged.
  kReceiveFailed = 6,  // The connection broke under a receive.
  kIncomplete = 7,     // All messages came, but they do not cover the lease.
  kCountMismatch = 8,  // They cover it, but are not as many as were sent.
};

// kDataLoss for damaged bytes; kAborted for what else may be tried again; otherwise kInternal.
absl::Status NakStatus(NakReason reason);
// For people.
const char* NakReasonText(NakReason reason);
// Whether pushing the same KV again, with another ticket, may succeed. Otherwise one of the two
// sides has a bug.
bool IsRetryable(NakReason reason);

struct NakMessage {
  EpochName name;
  NakReason reason = NakReason::kUnknownLease;
};

// Both ways.
struct ProbeMessage {
  uint64_t probe = 0;
  uint32_t round = 0;
  uint64_t payload_bytes = 0;
  uint64_t checksum = 0;
};

std::vector<std::byte> Encode(const KvMessage& message);
std::vector<std::byte> Encode(const CommitMessage& message);
std::vector<std::byte> Encode(const AbortMessage& message);
std::vector<std::byte> Encode(const AckMessage& message);
std::vector<std::byte> Encode(const NakMessage& message);
// `type`: kProbe or kProbeReply.
std::vector<std::byte> EncodeProbe(HandoffType type, const ProbeMessage& message);

std::optional<KvMessage> DecodeKv(ConstSpan header);
std::optional<CommitMessage> DecodeCommit(ConstSpan header);
std::optional<AbortMessage> DecodeAbort(ConstSpan header);
std::optional<AckMessage> DecodeAck(ConstSpan header);
std::optional<NakMessage> DecodeNak(ConstSpan header);
std::optional<ProbeMessage> DecodeProbe(HandoffType type, ConstSpan header);

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_HANDOFF_CODEC_H_
