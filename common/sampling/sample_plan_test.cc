// Goal: a plan holds every change that a request makes to the logits, in the order in which
// Sample() documents them, and nothing else.
#include "common/sampling/sample_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "common/sampling/sampler.h"

namespace baton {
namespace {

using Tokens = std::vector<TokenId>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(SamplePlanTest, PlainOptionsNeedNoEdits) {
  const SamplingParams params = {
      .temperature = 0.5f, .top_k = 7, .top_p = 0.9f, .min_p = 0.1f, .seed = 5};

  const SamplePlan plan = PlanSample(10, Tokens{1, 2, 2}, 1, params, {.stop_token_ids = {3}}, 4);

  EXPECT_TRUE(plan.edits.empty());
  EXPECT_EQ(plan.row.temperature, 0.5f);
  EXPECT_EQ(plan.row.top_k, 7u);
  EXPECT_EQ(plan.row.top_p, 0.9f);
  EXPECT_EQ(plan.row.min_p, 0.1f);
  EXPECT_EQ(plan.row.u, UniformAt(5, 4, 3));
  EXPECT_EQ(plan.row.edits_begin, plan.row.edits_end);
}

TEST(SamplePlanTest, ChangesOfOneTokenBecomeOneEdit) {
  const SamplingParams params = {.repetition_penalty = 1.5f,
                                 .presence_penalty = 0.25f,
                                 .frequency_penalty = 0.5f,
                                 .logit_bias = {{3, 2.0f}}};

  const SamplePlan plan =
      PlanSample(10, Tokens{7, 3, 3, 3}, 2, params, {.stop_token_ids = {3}, .min_tokens = 3});

  ASSERT_EQ(plan.edits.size(), 2u);
  EXPECT_EQ(plan.row.edits_end, 2u);
  EXPECT_EQ(plan.edits[0].id, 3);
  EXPECT_EQ(plan.edits[0].bias, 2.0f);
  EXPECT_EQ(plan.edits[0].repetition, 1.5f);
  EXPECT_EQ(plan.edits[0].frequency, 1.0f);  // Twice in the output, once in the prompt.
  EXPECT_EQ(plan.edits[0].presence, 0.25f);
  EXPECT_EQ(plan.edits[0].flags, kBiased | kRepeated | kPenalized | kBarred);
  EXPECT_EQ(plan.edits[1].id, 7);
  EXPECT_EQ(plan.edits[1].flags, kRepeated);
}

TEST(SamplePlanTest, BiasGivenTwiceIsAddedTwiceAndInOrder) {
  const SamplingParams params = {.repetition_penalty = 2.0f,
                                 .logit_bias = {{1, 1e30f}, {0, 3.0f}, {1, -1e30f}}};

  const SamplePlan plan = PlanSample(4, Tokens{1}, 1, params, {});

  ASSERT_EQ(plan.edits.size(), 3u);
  EXPECT_EQ(plan.edits[0].id, 0);
  EXPECT_EQ(plan.edits[1].bias, 1e30f);
  EXPECT_EQ(plan.edits[1].flags, kBiased);
  EXPECT_EQ(plan.edits[2].bias, -1e30f);
  EXPECT_EQ(plan.edits[2].flags, kBiased | kRepeated);
  // The first swallows the logit: the sum of both would not.
  EXPECT_EQ(Edited(Edited(1.0f, plan.edits[1]), plan.edits[2]), 0.0f);
}

TEST(SamplePlanTest, IdsOutsideTheVocabularyAreIgnored) {
  const SamplingParams params = {.repetition_penalty = 2.0f,
                                 .presence_penalty = 1.0f,
                                 .logit_bias = {{-1, 1.0f}, {4, 1.0f}, {1 << 30, 1.0f}}};

  const SamplePlan plan =
      PlanSample(4, Tokens{-5, 4, 9}, 1, params, {.stop_token_ids = {-1, 4}, .min_tokens = 9});

  EXPECT_TRUE(plan.edits.empty());
}

TEST(SamplePlanTest, StopTokensAreBarredOnlyBelowTheMinimum) {
  const StopParams stop = {.stop_token_ids = {2, 2}, .min_tokens = 2};

  const SamplePlan below = PlanSample(4, Tokens{0, 1}, 1, {}, stop);
  const SamplePlan reached = PlanSample(4, Tokens{0, 1, 1}, 1, {}, stop);

  ASSERT_FALSE(below.edits.empty());
  for (const LogitEdit& edit : below.edits) {
    EXPECT_EQ(edit.id, 2);
    EXPECT_EQ(Edited(9.0f, edit), -kInfinity);
  }
  EXPECT_TRUE(reached.edits.empty());
}

TEST(SamplePlanTest, WhatIsNoNumberIsBarredAfterEachStep) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(Comparable(std::numeric_limits<float>::quiet_NaN()), -kInfinity);
  EXPECT_EQ(Comparable(kInfinity), largest);
  // -infinity stays, whatever is added; what grows too large remains the largest.
  EXPECT_EQ(Edited(-kInfinity, {.bias = kInfinity, .flags = kBiased}), -kInfinity);
  EXPECT_EQ(Edited(largest, {.bias = largest, .repetition = 2.0f, .flags = kBiased | kRepeated}),
            largest / 2.0f);
  EXPECT_EQ(Edited(-3.0f, {.repetition = 2.0f, .flags = kRepeated}), -6.0f);
}

bool Equal(std::span<const LogitEdit> a, std::span<const LogitEdit> b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(), [](const LogitEdit& x, const LogitEdit& y) {
        return x.id == y.id && x.bias == y.bias && x.repetition == y.repetition &&
               x.frequency == y.frequency && x.presence == y.presence && x.flags == y.flags;
      });
}

// Goal: a plan that is brought forward, or made before the token is known, is the one that is made
// anew, whatever the options are and however many tokens are new.
TEST(SamplePlannerTest, PlansAsIfItLookedAtAllTokens) {
  constexpr TokenId kVocab = 20;
  std::mt19937 random(2);
  const auto token = [&] { return static_cast<TokenId>(random() % (kVocab + 4)) - 2; };
  const auto some = [&] { return static_cast<float>(random() % 2000) / 300.0f - 3.0f; };
  const auto maybe = [&](float value) { return random() % 2 == 0 ? 0.0f : value; };
  for (int round = 0; round < 300; ++round) {
    SamplingParams params = {.temperature = 0.5f,
                             .top_k = 3,
                             .repetition_penalty = 1.0f + maybe(0.5f),
                             .presence_penalty = maybe(0.25f),
                             .frequency_penalty = maybe(-0.125f),
                             .seed = random()};
    for (size_t i = random() % 6; i > 0; --i) params.logit_bias.emplace_back(token(), some());
    StopParams stop = {.min_tokens = static_cast<uint32_t>(random() % 30)};
    for (size_t i = random() % 4; i > 0; --i) stop.stop_token_ids.push_back(token());
    Tokens tokens(random() % 40);
    for (TokenId& id : tokens) id = token();
    const auto prompt_tokens = static_cast<uint32_t>(random() % (tokens.size() + 1));
    SamplePlanner planner;
    for (int step = 0; step < 40; ++step) {
      const bool ahead = DisregardsTokens(params) && random() % 2 == 0;
      if (ahead) tokens.push_back(token());  // Whatever it will be.
      const SamplePlan& plan =
          ahead ? planner.PlanAhead(kVocab, tokens.size(), prompt_tokens, params, stop)
                : planner.Plan(kVocab, tokens, prompt_tokens, params, stop);

      const SamplePlan expected = PlanSample(kVocab, tokens, prompt_tokens, params, stop);
      ASSERT_TRUE(Equal(plan.edits, expected.edits)) << "round " << round << " step " << step;
      ASSERT_EQ(plan.row.u, expected.row.u);
      ASSERT_EQ(plan.row.top_k, expected.row.top_k);
      ASSERT_EQ(plan.row.edits_end, expected.row.edits_end);
      // Mostly one more; sometimes none, or many.
      const size_t kinds[] = {1, 1, 1, 1, 1, 1, 0, 2};
      for (size_t more = kinds[random() % 8]; more > 0; --more) tokens.push_back(token());
      // As after a step that failed.
      if (random() % 16 == 0 && tokens.size() > prompt_tokens) tokens.pop_back();
    }
  }
}

// Goal: edits that are merged and sorted do what the definition does, step by step.
TEST(SamplePlanTest, EditsDoWhatTheDefinitionSays) {
  constexpr TokenId kVocab = 20;
  std::mt19937 random(1);
  const auto token = [&] { return static_cast<TokenId>(random() % (kVocab + 4)) - 2; };
  const auto some = [&] { return static_cast<float>(random() % 2000) / 300.0f - 3.0f; };
  for (int round = 0; round < 200; ++round) {
    Tokens tokens(2 + random() % 40);
    for (TokenId& id : tokens) id = token();
    const auto prompt_tokens = static_cast<uint32_t>(random() % tokens.size());
    SamplingParams params = {.repetition_penalty = random() % 2 == 0 ? 1.0f : 1.3f,
                             .presence_penalty = random() % 2 == 0 ? 0.0f : some(),
                             .frequency_penalty = random() % 2 == 0 ? 0.0f : some()};
    for (size_t i = random() % 6; i > 0; --i) params.logit_bias.emplace_back(token(), some());
    std::vector<float> expected(kVocab);
    for (float& logit : expected) logit = some();
    std::vector<float> logits = expected;

    const SamplePlan plan = PlanSample(kVocab, tokens, prompt_tokens, params, {});
    for (const LogitEdit& edit : plan.edits) logits[edit.id] = Edited(logits[edit.id], edit);

    for (const auto& [id, bias] : params.logit_bias) {
      if (id >= 0 && id < kVocab) expected[id] += bias;
    }
    for (TokenId id = 0; id < kVocab; ++id) {
      const auto occurrences = std::count(tokens.begin(), tokens.end(), id);
      const auto count = std::count(tokens.begin() + prompt_tokens, tokens.end(), id);
      float& logit = expected[id];
      const float penalty = params.repetition_penalty;
      if (occurrences > 0) logit = logit > 0.0f ? logit / penalty : logit * penalty;
      if (count == 0) continue;
      logit = logit - params.frequency_penalty * static_cast<float>(count);
      logit = logit - params.presence_penalty;
    }
    ASSERT_EQ(logits, expected);
  }
}

}  // namespace
}  // namespace baton
