#include "common/rpc/message_limit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "proto/worker.pb.h"

namespace baton {
namespace {

TEST(MessageLimitTest, LargestCommandOfAContextFitsWhereTheLimitIsAccepted) {
  constexpr uint32_t kContextTokens = 10'000;
  v1::Command command;
  v1::Work* work = command.mutable_prefill()->mutable_work();
  work->mutable_tokens()->Resize(kContextTokens, INT32_MAX);
  for (int i = 0; i < 4096; ++i) (*work->mutable_sampling()->mutable_logit_bias())[-1 - i] = 1;

  const int bytes = static_cast<int>(command.ByteSizeLong());
  constexpr int kLimit = 5 * kContextTokens + (128 << 10);
  EXPECT_TRUE(CheckMessageLimit(kContextTokens, kLimit).ok());
  EXPECT_LE(bytes, kLimit);
  const absl::Status refusal = CheckMessageLimit(kContextTokens, bytes - 1);
  EXPECT_THAT(std::string(refusal.message()), testing::HasSubstr("--message_limit"));
}

}  // namespace
}  // namespace baton
