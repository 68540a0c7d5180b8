#include "common/engine/work_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

namespace baton {
namespace {

using testing::HasSubstr;

ModelConfig SmallModel() {
  ModelConfig model;
  model.vocab_size = 100;
  model.context_tokens = 32;
  return model;
}

v1::Work GoodWork() {
  v1::Work work;
  work.set_request(7);
  for (int token : {1, 2, 3}) work.add_tokens(token);
  work.set_prompt_tokens(2);
  work.set_total_tokens_max(10);
  return work;
}

absl::StatusOr<Sequence> Decode(const v1::Work& work) {
  return SequenceFromWork(Incarnation{1}, work, SmallModel(), Instant{});
}

TEST(WorkCodecTest, GeneratedTokensFollowThePrompt) {
  const Sequence sequence = Decode(GoodWork()).value();

  EXPECT_EQ(sequence.generated(), 1u);
  EXPECT_EQ(sequence.pending(), 3u);
  EXPECT_EQ(sequence.deadline, kNever);
}

TEST(WorkCodecTest, RefusesATokenOutsideTheVocabulary) {
  for (const int token : {-1, 100}) {
    v1::Work work = GoodWork();
    work.set_tokens(1, token);
    const absl::Status status = Decode(work).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(token)));
  }
}

TEST(WorkCodecTest, RefusesSamplingThatCannotBeComputed) {
  using Options = v1::SamplingOptions;
  const std::vector<std::function<void(Options&)>> bad = {
      [](Options& options) { options.set_temperature(NAN); },
      [](Options& options) { options.set_temperature(-1); },
      [](Options& options) { options.set_top_p(-0.5f); },
      [](Options& options) { options.set_min_p(4.5e7f); },
      [](Options& options) { options.set_min_p(NAN); },
      [](Options& options) { options.set_repetition_penalty(INFINITY); },
      [](Options& options) { options.set_presence_penalty(3); },
      [](Options& options) { options.set_frequency_penalty(-3); },
      [](Options& options) { (*options.mutable_logit_bias())[1] = NAN; },
  };
  for (const auto& spoil : bad) {
    v1::Work work = GoodWork();
    spoil(*work.mutable_sampling());
    const absl::Status status = Decode(work).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("sampling."));
  }
}

TEST(WorkCodecTest, RefusesWhatCannotFit) {
  v1::Work work = GoodWork();
  work.set_total_tokens_max(33);
  EXPECT_FALSE(Decode(work).ok());
  work.set_total_tokens_max(3);
  EXPECT_FALSE(Decode(work).ok());
  work = GoodWork();
  work.set_prompt_tokens(4);
  EXPECT_FALSE(Decode(work).ok());
  work.set_prompt_tokens(0);
  EXPECT_FALSE(Decode(work).ok());
  work.clear_tokens();
  EXPECT_FALSE(Decode(work).ok());
}

TEST(WorkCodecTest, HugeDeadlineDoesNotOverflow) {
  v1::Work work = GoodWork();
  work.set_deadline_ms(UINT64_MAX);

  EXPECT_GT(Decode(work)->deadline, Instant{});
}

TEST(WorkCodecTest, StopTokenAndLengthEndASequence) {
  v1::Work work = GoodWork();
  work.mutable_stopping()->add_stop_token_ids(50);
  Sequence sequence = Decode(work).value();
  EXPECT_EQ(FinishOf(sequence), std::nullopt);
  sequence.tokens.push_back(50);
  EXPECT_EQ(FinishOf(sequence), v1::FINISH_REASON_STOP);
  sequence.tokens.resize(10, 0);
  EXPECT_EQ(FinishOf(sequence), v1::FINISH_REASON_LENGTH);
}

}  // namespace
}  // namespace baton
