// Statuses inside messages, as (code, message). Codes are the same numbers everywhere
// (google.rpc.Code). What calls carry is in common/rpc/status_codec.h.
//
// Pure functions; any thread.
#ifndef BATON_COMMON_BASE_WIRE_STATUS_H_
#define BATON_COMMON_BASE_WIRE_STATUS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace baton {

// gRPC carries a status in trailing metadata, of which peers accept 8 KiB by default.
inline constexpr size_t kStatusMessageBytesMax = 2048;

// The status's message, made safe for the wire: valid UTF-8 and at most kStatusMessageBytesMax
// bytes. Protobuf refuses to parse a text that is no UTF-8, which would break a whole session.
std::string WireMessage(const absl::Status& status);

// Fills the fields `int32 code` and `string message` of a message that tells of a failure.
template <typename Message>
void SetWireStatus(const absl::Status& status, Message* message) {
  message->set_code(static_cast<int32_t>(status.code()));
  message->set_message(WireMessage(status));
}

// What such a message says. Never OK: a code that is no failure's is the peer's error, kInternal.
absl::Status FailureFromWire(int32_t code, const std::string& message);

}  // namespace baton

#endif  // BATON_COMMON_BASE_WIRE_STATUS_H_
