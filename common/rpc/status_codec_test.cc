#include "common/rpc/status_codec.h"

#include <gtest/gtest.h>

#include "proto/worker.pb.h"

namespace baton {
namespace {

TEST(StatusCodecTest, EveryCodeRoundTripsThroughGrpc) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why: 17");

    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
    EXPECT_EQ(ToGrpcStatus(status).error_code(), code);
  }
}

TEST(StatusCodecTest, EveryCodeRoundTripsThroughAMessage) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why: 17");
    v1::Rejected rejected;

    SetWireStatus(status, &rejected);

    EXPECT_EQ(FromWire(rejected.code(), rejected.message()), status);
    EXPECT_EQ(rejected.code(), code);
  }
}

TEST(StatusCodecTest, ForeignCodeBecomesUnknown) {
  for (const int code : {-1, 17, 1 << 30}) {
    EXPECT_EQ(FromWire(code, "x"), absl::UnknownError("x"));
  }
}

TEST(StatusCodecTest, MessageIsValidUtf8AndBounded) {
  const std::string good = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  EXPECT_EQ(ToWireMessage(absl::InternalError(good)), good);
  // A lone continuation byte, an overlong slash, a surrogate, U+110000, and a cut character.
  EXPECT_EQ(
      ToWireMessage(absl::InternalError("\x80|\xC0\xAF|\xED\xA0\x80|\xF4\x90\x80\x80|\xE2\x82")),
      "?|??|???|????|??");
  std::string euros = "x";
  for (int i = 0; i < 2000; ++i) euros += "\xE2\x82\xAC";

  const std::string cut = ToWireMessage(absl::InternalError(euros));

  EXPECT_LE(cut.size(), kStatusMessageBytesMax);
  EXPECT_GT(cut.size(), kStatusMessageBytesMax - 3);
  EXPECT_EQ(cut, euros.substr(0, cut.size()));
  EXPECT_EQ(cut.size() % 3, 1u) << "no half character";
}

}  // namespace
}  // namespace baton
