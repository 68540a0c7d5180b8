// What a transfer agent reports. Each event names what it is about; the order per lease and per
// transfer is the one given here.
//
// A lease's epoch (D):   [LeaseFilled | LeaseFailed | LeaseAborted], then, after RetireLease,
//                        LeaseQuiesced exactly once. Nothing about that epoch follows.
// A transfer (P):        TransferAcked | TransferFailed exactly once (not after AbortTransfer),
// then
//                        TransferReleased exactly once. Nothing about it follows.
// A probe:               ProbeFinished exactly once.
#ifndef BATON_COMMON_KV_TRANSFER_TRANSFER_EVENT_H_
#define BATON_COMMON_KV_TRANSFER_TRANSFER_EVENT_H_

#include <cstdint>
#include <functional>
#include <variant>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_transfer/ticket.h"

namespace baton {

// P's name for one push of a sequence's KV to one D; chosen by the caller, never used twice.
enum class TransferId : uint64_t {};
// The caller's name for a probe, never used twice.
enum class ProbeId : uint64_t {};

// Every byte landed, all checksums hold, and the commit is acknowledged: the sequence may run.
struct LeaseFilled {
  LeaseId lease{};
  Epoch epoch{};
  CommittedToken first_token;
  uint64_t bytes = 0;
};

// This epoch cannot be filled any more. Its blocks stay put until it is retired and quiesced.
struct LeaseFailed {
  LeaseId lease{};
  Epoch epoch{};
  absl::Status status;
  bool retryable = false;  // A new epoch may succeed.
};

// P gave this epoch up.
struct LeaseAborted {
  LeaseId lease{};
  Epoch epoch{};
};

// Nothing lands in the blocks of this epoch any more: they may be used for something else.
struct LeaseQuiesced {
  LeaseId lease{};
  Epoch epoch{};
};

// D has everything and runs the sequence.
struct TransferAcked {
  TransferId id{};
  uint64_t bytes = 0;
  Duration duration{};  // From begin to acknowledgement.
  Duration tail{};      // From commit to acknowledgement.
};

// D refused, died or did not answer in time. kUnavailable: the peer is lost or does not read.
struct TransferFailed {
  TransferId id{};
  absl::Status status;
  bool retryable = false;  // The same KV may be pushed again with another ticket.
};

// The transfer reads its source blocks no more: they may be unpinned.
struct TransferReleased {
  TransferId id{};
};

struct ProbeFinished {
  ProbeId id{};
  absl::Status status;  // The rest holds only if OK.
  double round_trip_ms = 0;
  double bytes_per_second = 0;  // Over both ways.
};

using TransferEvent = std::variant<LeaseFilled, LeaseFailed, LeaseAborted, LeaseQuiesced,
                                   TransferAcked, TransferFailed, TransferReleased, ProbeFinished>;
using TransferEventSink = std::function<void(TransferEvent)>;

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_TRANSFER_EVENT_H_
