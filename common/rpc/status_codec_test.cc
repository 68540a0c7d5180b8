#include "common/rpc/status_codec.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(StatusCodecTest, EveryCodeRoundTripsThroughGrpc) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why: 17");

    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
    EXPECT_EQ(ToGrpcStatus(status).error_code(), code);
  }
}

TEST(StatusCodecTest, ForeignCodeBecomesUnknown) {
  for (const int code : {-1, 17}) {
    const grpc::Status foreign(static_cast<grpc::StatusCode>(code), "x");
    EXPECT_EQ(FromGrpcStatus(foreign), absl::UnknownError("x"));
  }
}

TEST(StatusCodecTest, MessageIsMadeSafe) {
  EXPECT_EQ(ToGrpcStatus(absl::InternalError("\xff")).error_message(), "?");
}

}  // namespace
}  // namespace baton
