// Goal: every option does what its definition says, and the choice is a pure function of its
// arguments. Method: cases by hand; an obvious twin that sorts everything and works in long double;
// distributions against their probabilities with Pearson's chi-square.
#include "common/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "common/base/deterministic_math.h"

namespace baton {
namespace {

using Floats = std::vector<float>;
using Tokens = std::vector<TokenId>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SampledToken SampleCopy(Floats logits, const Tokens& tokens, uint32_t prompt_tokens,
                        const SamplingParams& params, const StopParams& stop = {},
                        uint32_t sample_index = 0) {
  return Sample(logits, tokens, prompt_tokens, params, stop, sample_index);
}

TokenId Greedy(Floats logits, const Tokens& tokens = {}, uint32_t prompt_tokens = 0,
               SamplingParams params = {}, const StopParams& stop = {}) {
  params.temperature = 0.0f;
  return SampleCopy(std::move(logits), tokens, prompt_tokens, params, stop).id;
}

Floats RandomLogits(size_t count, uint32_t seed, float deviation = 2.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Probabilities after temperature, top-k, top-p and min-p, by sorting.
std::map<TokenId, long double> ExpectedProbabilities(const Floats& logits,
                                                     const SamplingParams& params) {
  std::vector<std::pair<long double, TokenId>> sorted;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] == -kInfinity) continue;
    sorted.emplace_back(static_cast<long double>(logits[id]) / params.temperature, id);
  }
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  if (params.top_k != 0 && params.top_k < sorted.size()) sorted.resize(params.top_k);
  const long double highest = sorted.front().first;
  long double total = 0.0L;
  for (auto& [value, id] : sorted) total += value = std::exp(value - highest);
  size_t kept = 0;
  for (long double sum = 0.0L; kept < sorted.size(); ++kept) {
    if (kept > 0 && sum >= params.top_p * total) break;
    sum += sorted[kept].first;
  }
  sorted.resize(kept);
  std::erase_if(sorted, [&](const auto& entry) { return entry.first < params.min_p; });
  total = 0.0L;
  for (const auto& entry : sorted) total += entry.first;
  std::map<TokenId, long double> probabilities;
  for (const auto& [value, id] : sorted) probabilities[id] = value / total;
  return probabilities;
}

// Draws once per position and compares the counts with `expected`.
void ExpectDistribution(const Floats& logits, const SamplingParams& params,
                        const std::map<TokenId, long double>& expected) {
  constexpr int kDraws = 20000;
  std::map<TokenId, int> counts;
  Tokens tokens;
  for (int i = 0; i < kDraws; ++i) {
    tokens.push_back(0);
    ++counts[SampleCopy(logits, tokens, static_cast<uint32_t>(tokens.size()), params).id];
  }
  // Rare tokens share a cell, so that every cell expects a few draws.
  double chi_square = 0.0;
  double rare_expected = 0.0;
  double rare_count = 0.0;
  int cells = 0;
  for (const auto& [id, count] : counts) ASSERT_TRUE(expected.contains(id)) << "drew " << id;
  for (const auto& [id, probability] : expected) {
    const double mean = static_cast<double>(probability) * kDraws;
    const double count = counts.contains(id) ? counts[id] : 0;
    if (mean < 10.0) {
      rare_expected += mean;
      rare_count += count;
      continue;
    }
    chi_square += (count - mean) * (count - mean) / mean;
    ++cells;
  }
  if (rare_expected >= 10.0) {
    chi_square += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
    ++cells;
  }
  // Mean n - 1, variance 2 (n - 1): five deviations above the mean.
  const double freedom = std::max(1, cells - 1);
  EXPECT_LT(chi_square, freedom + 5.0 * std::sqrt(2.0 * freedom) + 1.0) << cells << " cells";
}

TEST(SamplerTest, GreedyTakesTheHighestAndTheLowerIdOfEquals) {
  EXPECT_EQ(Greedy({0.0f, 3.0f, 1.0f}), 1);
  EXPECT_EQ(Greedy({0.0f, 3.0f, 3.0f}), 1);
  EXPECT_EQ(Greedy({-kInfinity, -5.0f}), 1);
}

TEST(SamplerTest, NotANumberIsNeverChosen) {
  EXPECT_EQ(Greedy({kNan, 1.0f, 0.0f}), 1);
  EXPECT_EQ(Greedy({0.0f, kNan, 2.0f, kInfinity}), 3);
  EXPECT_EQ(Greedy({kNan, kNan}), 0);  // Nothing is possible: some token, always the same.
  for (uint32_t position = 0; position < 50; ++position) {
    const SampledToken token =
        SampleCopy({kNan, 1.0f, -kInfinity, 1.0f}, Tokens(position), 0, {.logprobs = 4});
    EXPECT_TRUE(token.id == 1 || token.id == 3);
    EXPECT_NEAR(token.logprob, std::log(0.5f), 1e-6f);
    const SampledToken infinite = SampleCopy({0.0f, kInfinity, 5.0f}, Tokens(position), 0, {});
    EXPECT_EQ(infinite.id, 1);
  }
}

TEST(SamplerTest, PureFunctionOfItsArguments) {
  const Floats logits = RandomLogits(500, 1);
  const SamplingParams params = {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f, .seed = 42};
  for (uint32_t position = 0; position < 20; ++position) {
    const Tokens tokens(position, 3);
    EXPECT_EQ(SampleCopy(logits, tokens, 0, params).id, SampleCopy(logits, tokens, 0, params).id);
  }
}

TEST(SamplerTest, SeedPositionAndSampleIndexChangeTheDraw) {
  const Floats logits(1000, 0.0f);
  const auto draw = [&](uint64_t seed, uint32_t position, uint32_t index) {
    return SampleCopy(logits, Tokens(position), 0, {.seed = seed}, {}, index).id;
  };
  const TokenId base = draw(1, 5, 0);

  // A thousand equally likely tokens: three equal draws would be one chance in 10^9.
  EXPECT_TRUE(draw(2, 5, 0) != base || draw(3, 5, 0) != base);
  EXPECT_TRUE(draw(1, 6, 0) != base || draw(1, 7, 0) != base);
  EXPECT_TRUE(draw(1, 5, 1) != base || draw(1, 5, 2) != base);
  EXPECT_NE(draw(uint64_t{1} << 32, 5, 0), draw(uint64_t{2} << 32, 5, 0));
}

TEST(SamplerTest, UniformNumbersLieInTheUnitInterval) {
  double sum = 0.0;
  for (uint32_t position = 0; position < 10000; ++position) {
    const float u = UniformAt(7, 0, position);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.015);
}

struct DistributionCase {
  const char* name;
  SamplingParams params;
};

class DistributionTest : public testing::TestWithParam<DistributionCase> {};

TEST_P(DistributionTest, DrawsByTheProbabilities) {
  for (uint32_t seed : {1u, 2u}) {
    SamplingParams params = GetParam().params;
    params.seed = 100 + seed;
    const Floats logits = RandomLogits(40, seed);
    ExpectDistribution(logits, params, ExpectedProbabilities(logits, params));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, DistributionTest,
    testing::Values(
        DistributionCase{"Plain", {}}, DistributionCase{"Cold", {.temperature = 0.5f}},
        DistributionCase{"Hot", {.temperature = 2.0f}}, DistributionCase{"TopK", {.top_k = 5}},
        DistributionCase{"TopP", {.top_p = 0.7f}}, DistributionCase{"MinP", {.min_p = 0.1f}},
        DistributionCase{"All", {.temperature = 1.3f, .top_k = 20, .top_p = 0.9f, .min_p = 0.02f}}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(SamplerTest, TopKOneIsGreedyAndTiesGoToTheLowerId) {
  const Floats logits = {1.0f, 2.0f, 2.0f, 2.0f};
  for (uint32_t position = 0; position < 200; ++position) {
    EXPECT_EQ(SampleCopy(logits, Tokens(position), 0, {.top_k = 1}).id, 1);
    EXPECT_NE(SampleCopy(logits, Tokens(position), 0, {.top_k = 2}).id, 3);
  }
}

TEST(SamplerTest, TinyTopPKeepsTheLikeliest) {
  const Floats logits = RandomLogits(100, 3);
  for (uint32_t position = 0; position < 100; ++position) {
    EXPECT_EQ(SampleCopy(logits, Tokens(position), 0, {.top_p = 1e-6f}).id, Greedy(logits));
  }
}

TEST(SamplerTest, TinyTemperatureIsGreedy) {
  const Floats logits = RandomLogits(100, 4, 1e5f);
  for (uint32_t position = 0; position < 100; ++position) {
    EXPECT_EQ(SampleCopy(logits, Tokens(position), 0, {.temperature = 1e-38f}).id, Greedy(logits));
  }
}

TEST(SamplerTest, BiasAddsToTheLogit) {
  EXPECT_EQ(Greedy({0.0f, 1.0f, 0.5f}, {}, 0, {.logit_bias = {{2, 0.6f}}}), 2);
  EXPECT_EQ(Greedy({0.0f, 1.0f, 0.5f}, {}, 0, {.logit_bias = {{1, -100.0f}}}), 2);
  EXPECT_EQ(Greedy({0.0f, 1.0f, 0.5f}, {}, 0, {.logit_bias = {{-1, 9.0f}, {77, 9.0f}}}), 1);
}

TEST(SamplerTest, RepetitionPenaltyCoversPromptAndOutput) {
  const SamplingParams params = {.repetition_penalty = 2.0f};

  // Positive logits are divided, negative ones multiplied; once, however often the token occurs.
  EXPECT_EQ(Greedy({3.0f, 2.0f, 1.0f}, {0, 0, 0}, 3, params), 1);
  EXPECT_EQ(Greedy({3.0f, 2.0f, 1.0f}, {0, 1}, 1, params), 0);
  EXPECT_EQ(Greedy({-1.0f, -1.5f}, {0}, 1, params), 1);
  EXPECT_EQ(Greedy({3.0f, 1.4f}, {0, 0, 0, 0}, 2, params), 0);
}

TEST(SamplerTest, PresenceAndFrequencyPenaltiesCoverTheOutputOnly) {
  EXPECT_EQ(Greedy({3.0f, 2.5f}, {0, 0}, 2, {.presence_penalty = 1.0f}), 0);
  EXPECT_EQ(Greedy({3.0f, 2.5f}, {0, 0}, 1, {.presence_penalty = 1.0f}), 1);
  EXPECT_EQ(Greedy({3.0f, 1.5f}, {1, 0, 0, 0}, 1, {.presence_penalty = 1.0f}), 0);
  EXPECT_EQ(Greedy({3.0f, 1.5f}, {1, 0, 0, 0}, 1, {.frequency_penalty = 1.0f}), 1);
  EXPECT_EQ(Greedy({3.0f, 1.5f}, {1, 0}, 1, {.frequency_penalty = 1.0f}), 0);
  EXPECT_EQ(Greedy({3.0f, 3.5f}, {1, 0}, 1, {.presence_penalty = -1.0f}), 0);
}

TEST(SamplerTest, StopTokensAreBarredBelowTheMinimum) {
  const StopParams stop = {.stop_token_ids = {0}, .min_tokens = 2};

  EXPECT_EQ(Greedy({3.0f, 2.0f}, {5, 5}, 2, {}, stop), 1);
  EXPECT_EQ(Greedy({3.0f, 2.0f}, {5, 5, 5}, 2, {}, stop), 1);
  EXPECT_EQ(Greedy({3.0f, 2.0f}, {5, 5, 5, 5}, 2, {}, stop), 0);
  // Bias does not lift the bar.
  EXPECT_EQ(Greedy({3.0f, 2.0f}, {5}, 1, {.logit_bias = {{0, 100.0f}}}, stop), 1);
}

TEST(SamplerTest, LogProbabilitiesAreOfTheRawLogits) {
  const Floats logits = {1.0f, 2.0f, 3.0f, 3.0f};
  const double sum = std::exp(1.0) + std::exp(2.0) + 2.0 * std::exp(3.0);

  const SampledToken token = SampleCopy(
      logits, {2, 3}, 0,
      {.temperature = 0.0f, .frequency_penalty = 5.0f, .logit_bias = {{0, 50.0f}}, .logprobs = 3});

  EXPECT_EQ(token.id, 0);
  EXPECT_NEAR(token.logprob, 1.0 - std::log(sum), 1e-6);
  ASSERT_EQ(token.top_logprobs.size(), 3u);
  EXPECT_EQ(token.top_logprobs[0].first, 2);
  EXPECT_EQ(token.top_logprobs[1].first, 3);
  EXPECT_EQ(token.top_logprobs[2].first, 1);
  EXPECT_NEAR(token.top_logprobs[0].second, 3.0 - std::log(sum), 1e-6);
  EXPECT_NEAR(token.top_logprobs[2].second, 2.0 - std::log(sum), 1e-6);
}

TEST(SamplerTest, LogProbabilitiesWithoutAlternatives) {
  const SampledToken token = SampleCopy({0.0f, 0.0f}, {}, 0, {.logprobs = 0});

  EXPECT_NEAR(token.logprob, std::log(0.5), 1e-6);
  EXPECT_TRUE(token.top_logprobs.empty());
  EXPECT_EQ(SampleCopy({0.0f}, {}, 0, {.logprobs = 20}).top_logprobs.size(), 1u);
}

class SamplerPropertyTest : public testing::TestWithParam<uint32_t> {};

// Goal: with random options of all kinds, only tokens that the twin allows are drawn.
TEST_P(SamplerPropertyTest, DrawsOnlyWhatTheOptionsLeave) {
  std::mt19937 random(GetParam());
  const auto uniform = [&] { return std::uniform_real_distribution<float>(0.0f, 1.0f)(random); };
  const Floats logits = RandomLogits(1 + random() % 2000, GetParam(), 3.0f);
  const SamplingParams params = {.temperature = 0.1f + 2.0f * uniform(),
                                 .top_k = static_cast<uint32_t>(random() % 100),
                                 .top_p = 0.01f + 0.99f * uniform(),
                                 .min_p = 0.2f * uniform() * uniform(),
                                 .seed = random()};
  SamplingParams wider = params;  // The twin rounds differently at the edge of the nucleus.
  wider.top_p = std::min(1.0f, params.top_p * 1.0001f);
  wider.min_p = params.min_p * 0.9999f;
  const auto allowed = ExpectedProbabilities(logits, wider);

  for (uint32_t position = 0; position < 200; ++position) {
    const TokenId id = SampleCopy(logits, Tokens(position), 0, params).id;
    ASSERT_TRUE(allowed.contains(id)) << id;
  }
}

// The definition in the same fixed point, by sorting everything.
TokenId ChoiceBySorting(const Floats& logits, const SamplingParams& params, float u) {
  struct Token {
    float logit;
    TokenId id;
    uint64_t weight;
  };
  const float highest = *std::max_element(logits.begin(), logits.end());
  const auto sum = [](const std::vector<Token>& tokens) {
    return std::accumulate(tokens.begin(), tokens.end(), uint64_t{0},
                           [](uint64_t seen, const Token& token) { return seen + token.weight; });
  };
  std::vector<Token> tokens;
  for (size_t id = 0; id < logits.size(); ++id) {
    const float probability = StableExp((logits[id] - highest) / params.temperature);
    tokens.push_back(
        {logits[id], static_cast<TokenId>(id), static_cast<uint64_t>(probability * 0x1p30f)});
  }
  std::sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  });
  if (params.top_k != 0 && params.top_k < tokens.size()) tokens.resize(params.top_k);
  if (params.top_p < 1.0f) {
    const auto wanted =
        static_cast<uint64_t>(static_cast<double>(params.top_p) * static_cast<double>(sum(tokens)));
    size_t kept = 0;
    for (uint64_t seen = 0; kept == 0 || seen < wanted; ++kept) seen += tokens[kept].weight;
    tokens.resize(kept);
  }
  std::erase_if(tokens, [&](const Token& token) {
    return static_cast<double>(token.weight) < params.min_p * 0x1p30;
  });
  std::sort(tokens.begin(), tokens.end(),
            [](const Token& a, const Token& b) { return a.id < b.id; });
  const double target = static_cast<double>(u) * static_cast<double>(sum(tokens));
  uint64_t seen = 0;
  for (const Token& token : tokens) {
    seen += token.weight;
    if (seen > static_cast<uint64_t>(target)) return token.id;
  }
  ADD_FAILURE() << "nothing to draw";
  return 0;
}

// Goal: classes, halves and thresholds choose what sorting would, among many equal logits too.
TEST_P(SamplerPropertyTest, ChoosesWhatSortingChooses) {
  const uint32_t seed = GetParam();
  std::mt19937 random(seed);
  const auto uniform = [&] { return std::uniform_real_distribution<float>(0.0f, 1.0f)(random); };
  Floats logits = RandomLogits(seed % 5 == 0 ? 50'000 : 1 + random() % 2000, seed, 8 * uniform());
  if (seed % 2 == 0) {
    for (float& logit : logits) logit = std::round(logit);
  }
  for (uint32_t position = 0; position < 20; ++position) {
    const SamplingParams params = {
        .temperature = 0.1f + 2.0f * uniform(),
        .top_k = random() % 2 == 0 ? 0 : static_cast<uint32_t>(random() % logits.size()),
        .top_p = random() % 3 == 0 ? 1.0f : uniform(),
        .min_p = random() % 2 == 0 ? 0.0f : uniform() * uniform(),
        .seed = random()};
    ASSERT_EQ(SampleCopy(logits, Tokens(position), 0, params).id,
              ChoiceBySorting(logits, params, UniformAt(params.seed, 0, position)));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SamplerPropertyTest, testing::Range(0u, 30u));

}  // namespace
}  // namespace baton
