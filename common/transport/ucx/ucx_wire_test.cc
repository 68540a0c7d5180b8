#include "common/transport/ucx/ucx_wire.h"

#include <gtest/gtest.h>

#include <random>

namespace baton {
namespace {

TEST(UcxWireTest, AGreetingSurvivesTheRoundTrip) {
  const std::string bytes = EncodeGreeting({Greeting::Kind::kWelcome, 0x0123456789abcdefULL});

  const std::optional<Greeting> decoded = DecodeGreeting(std::as_bytes(std::span(bytes)));

  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->kind, Greeting::Kind::kWelcome);
  EXPECT_EQ(decoded->to_identity, 0x0123456789abcdefULL);
}

TEST(UcxWireTest, RandomBytesAreNoGreeting) {
  std::mt19937_64 random(1);
  for (int size = 0; size < 64; ++size) {
    std::string bytes(size, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    EXPECT_FALSE(DecodeGreeting(std::as_bytes(std::span(bytes))).has_value());
  }
}

}  // namespace
}  // namespace baton
