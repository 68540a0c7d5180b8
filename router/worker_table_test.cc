#include "router/worker_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::WorkerHello Hello(v1::Role role, uint64_t incarnation) {
  v1::WorkerHello hello;
  hello.set_role(role);
  hello.set_incarnation(incarnation);
  hello.mutable_model()->set_model_fingerprint("model a");
  hello.mutable_model()->set_layout_fingerprint(1);
  hello.mutable_model()->set_numerics("f32");
  hello.mutable_model()->set_vocab_size(100);
  return hello;
}

class WorkerTableTest : public testing::Test {
 protected:
  WorkerTableTest() {
    first = table.Add("first:1", v1::ROLE_DECODE);
    second = table.Add("second:1", v1::ROLE_DECODE);
    table.Up(first, Hello(v1::ROLE_DECODE, 1));
  }
  void ExpectRefused(const v1::WorkerHello& refused, const std::string& reason) {
    table.Up(second, refused);
    EXPECT_EQ(table.Find(second)->state, WorkerState::kRefused);
    EXPECT_FALSE(table.Find(second)->serving());
    EXPECT_THAT(table.Find(second)->reason, HasSubstr(reason));
  }

  WorkerTable table{ClusterPolicy{.model_fingerprint = "", .vocab_size = 100}};
  WorkerId first{}, second{};
  v1::WorkerHello hello = Hello(v1::ROLE_DECODE, 2);
};

TEST_F(WorkerTableTest, LikeWorkersAreAccepted) {
  table.Up(second, hello);

  EXPECT_TRUE(table.Find(first)->ready());
  EXPECT_TRUE(table.Find(second)->ready());
}

TEST_F(WorkerTableTest, AnotherModelIsRefused) {
  hello.mutable_model()->set_model_fingerprint("model b");
  ExpectRefused(hello, "another model: fingerprint 6d6f64656c20, first:1 has");
}

TEST_F(WorkerTableTest, AnotherVocabularyIsRefused) {
  hello.mutable_model()->set_vocab_size(99);
  ExpectRefused(hello, "vocabulary of 99 tokens, the router's model has 100");
}

TEST_F(WorkerTableTest, AnotherLayoutIsRefused) {
  hello.mutable_model()->set_layout_fingerprint(2);
  ExpectRefused(hello, "another KV layout: fingerprint 0000000000000002, first:1 has");
}

TEST_F(WorkerTableTest, OtherNumericsAreRefused) {
  hello.mutable_model()->set_numerics("bf16");
  ExpectRefused(hello, "other numerics: bf16, first:1 has f32");
}

TEST_F(WorkerTableTest, AnotherRoleIsRefused) {
  hello.set_role(v1::ROLE_PREFILL);
  ExpectRefused(hello, "listed as decode but says prefill");
}

TEST_F(WorkerTableTest, TheSameProcessTwiceIsRefused) {
  hello.set_incarnation(1);
  ExpectRefused(hello, "the same process as first:1");
}

TEST_F(WorkerTableTest, NeverReachedIsConnectingAndSaysWhy) {
  table.Down(second, absl::UnavailableError("connection refused"));
  EXPECT_EQ(table.Find(second)->state, WorkerState::kConnecting);
  EXPECT_EQ(table.Find(second)->reason, "connection refused");
}

TEST_F(WorkerTableTest, RefusedByTheWorkerIsRefused) {
  table.Down(second, absl::FailedPreconditionError("another protocol"));
  EXPECT_EQ(table.Find(second)->state, WorkerState::kRefused);
}

TEST_F(WorkerTableTest, WithNobodyConnectedAnotherModelMayCome) {
  table.Down(first, absl::UnavailableError("gone"));
  hello.mutable_model()->set_model_fingerprint("model b");
  table.Up(second, hello);

  EXPECT_TRUE(table.Find(second)->ready());
  EXPECT_EQ(table.Find(first)->state, WorkerState::kLost);
  EXPECT_EQ(table.Find(first)->reason, "gone");
}

TEST_F(WorkerTableTest, TheRefusedAreJudgedAgainWhenTheOneInTheirWayIsGone) {
  hello.mutable_model()->set_model_fingerprint("model b");
  ExpectRefused(hello, "another model");
  EXPECT_THAT(table.JudgeAgain(), IsEmpty());

  table.Down(first, absl::UnavailableError("gone"));

  EXPECT_THAT(table.JudgeAgain(), ElementsAre(second));
  EXPECT_TRUE(table.Find(second)->ready());
  table.Down(second, absl::FailedPreconditionError("another protocol"));
  EXPECT_THAT(table.JudgeAgain(), IsEmpty()) << "it has no session";
}

TEST(WorkerTablePolicyTest, RequiredFingerprintBindsTheFirstToo) {
  WorkerTable table({.model_fingerprint = "model b", .vocab_size = 0});
  const WorkerId id = table.Add("a:1", v1::ROLE_DECODE);
  table.Up(id, Hello(v1::ROLE_DECODE, 1));

  EXPECT_EQ(table.Find(id)->state, WorkerState::kRefused);
}

TEST(WorkerTablePolicyTest, MixedNumericsByPolicy) {
  WorkerTable table({.model_fingerprint = "", .vocab_size = 0, .mixed_numerics = true});
  const WorkerId first = table.Add("a:1", v1::ROLE_DECODE);
  const WorkerId second = table.Add("b:1", v1::ROLE_DECODE);
  table.Up(first, Hello(v1::ROLE_DECODE, 1));
  v1::WorkerHello other = Hello(v1::ROLE_DECODE, 2);
  other.mutable_model()->set_numerics("bf16");
  table.Up(second, other);

  EXPECT_TRUE(table.Find(second)->ready());
}

}  // namespace
}  // namespace baton
