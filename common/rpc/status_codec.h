// Where a status becomes a call's and back: absl::Status in the program, grpc::Status on a call.
// Codes are the same numbers everywhere (google.rpc.Code). Statuses inside messages:
// common/base/wire_status.h, which also makes the message of a call's status safe.
#ifndef BATON_COMMON_RPC_STATUS_CODEC_H_
#define BATON_COMMON_RPC_STATUS_CODEC_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace baton {

grpc::Status ToGrpcStatus(const absl::Status& status);
// A code that is no google.rpc.Code becomes UNKNOWN.
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace baton

#endif  // BATON_COMMON_RPC_STATUS_CODEC_H_
