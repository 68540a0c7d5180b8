#include "common/rpc/status_codec.h"

#include "common/base/wire_status.h"

namespace baton {
namespace {

// Codes are equal in absl::Status, gRPC and google.rpc.Code: 0 (OK) to 16 (UNAUTHENTICATED).
constexpr int kCodeMax = 16;
static_assert(static_cast<int>(absl::StatusCode::kOk) == grpc::StatusCode::OK);
static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) == kCodeMax);
static_assert(grpc::StatusCode::UNAUTHENTICATED == kCodeMax);

absl::StatusCode ToCode(int code) {
  return code < 0 || code > kCodeMax ? absl::StatusCode::kUnknown
                                     : static_cast<absl::StatusCode>(code);
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), WireMessage(status));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(ToCode(status.error_code()), status.error_message());
}

}  // namespace baton
