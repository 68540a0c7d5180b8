#include "common/base/wire_status.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace baton {
namespace {

struct Failure {
  int32_t code = 0;
  std::string message;
  void set_code(int32_t value) { code = value; }
  void set_message(std::string value) { message = std::move(value); }
};

TEST(WireStatusTest, EveryFailureRoundTrips) {
  for (int32_t code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why: 17");
    Failure failure;

    SetWireStatus(status, &failure);

    EXPECT_EQ(failure.code, code);
    EXPECT_EQ(FailureFromWire(failure.code, failure.message), status);
  }
}

TEST(WireStatusTest, CodeThatIsNoFailuresIsThePeersError) {
  for (const int32_t code : {-1, 0, 17, 1 << 30}) {
    const absl::Status status = FailureFromWire(code, "x");
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    EXPECT_NE(status.message().find("x"), std::string::npos);
  }
}

TEST(WireStatusTest, MessageIsValidUtf8AndBounded) {
  const std::string good = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  EXPECT_EQ(WireMessage(absl::InternalError(good)), good);
  // A lone continuation byte, an overlong slash, a surrogate, U+110000, and a cut character.
  EXPECT_EQ(
      WireMessage(absl::InternalError("\x80|\xC0\xAF|\xED\xA0\x80|\xF4\x90\x80\x80|\xE2\x82")),
      "?|??|???|????|??");
  std::string euros = "x";
  for (int i = 0; i < 2000; ++i) euros += "\xE2\x82\xAC";

  const std::string cut = WireMessage(absl::InternalError(euros));

  EXPECT_LE(cut.size(), kStatusMessageBytesMax);
  EXPECT_GT(cut.size(), kStatusMessageBytesMax - 3);
  EXPECT_EQ(cut, euros.substr(0, cut.size()));
  EXPECT_EQ(cut.size() % 3, 1u) << "no half character";
}

}  // namespace
}  // namespace baton
