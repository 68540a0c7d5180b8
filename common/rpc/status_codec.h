// The only place where statuses change their form: absl::Status in the program, grpc::Status on a
// call, (code, message) inside a message. Codes are the same numbers everywhere (google.rpc.Code).
//
// Messages are made safe for the wire: valid UTF-8 and at most kStatusMessageBytesMax bytes.
#ifndef BATON_COMMON_RPC_STATUS_CODEC_H_
#define BATON_COMMON_RPC_STATUS_CODEC_H_

#include <grpcpp/support/status.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace baton {

// gRPC carries a status in trailing metadata, of which peers accept 8 KiB by default.
inline constexpr size_t kStatusMessageBytesMax = 2048;

grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// For messages with fields `int32 code` and `string message`. A code that is no google.rpc.Code
// becomes UNKNOWN.
int32_t ToWireCode(const absl::Status& status);
std::string ToWireMessage(const absl::Status& status);
absl::Status FromWire(int32_t code, const std::string& message);

// Fills `code` and `message` of Rejected, PrefillFailed or SequenceFailed.
template <typename Message>
void SetWireStatus(const absl::Status& status, Message* message) {
  message->set_code(ToWireCode(status));
  message->set_message(ToWireMessage(status));
}

}  // namespace baton

#endif  // BATON_COMMON_RPC_STATUS_CODEC_H_
