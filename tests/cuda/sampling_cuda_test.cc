// Goal: the GPU chooses the same token as Sample(), always. Method: rows with random options and
// logits of many kinds, compared with ==.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/kernels/cuda/testing/gpu.h"
#include "common/sampling/sample_plan.h"
#include "common/sampling/sampler.h"

namespace baton::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Arguments of Sample().
struct Case {
  std::vector<float> logits;
  std::vector<TokenId> tokens = {};
  uint32_t prompt_tokens = 0;
  SamplingParams params = {};
  StopParams stop = {};
  uint32_t sample_index = 0;
};

std::string Describe(const Case& c) {
  return "vocab " + std::to_string(c.logits.size()) + " temperature " +
         std::to_string(c.params.temperature) + " top_k " + std::to_string(c.params.top_k) +
         " top_p " + std::to_string(c.params.top_p) + " min_p " + std::to_string(c.params.min_p) +
         " tokens " + std::to_string(c.tokens.size());
}

// Cases of one vocabulary as one batch.
void ExpectChoicesOfTheHost(const std::vector<Case>& cases) {
  const auto rows = static_cast<uint32_t>(cases.size());
  const auto vocab = static_cast<uint32_t>(cases.front().logits.size());
  std::vector<float> logits;
  std::vector<SampleRow> samples;
  std::vector<LogitEdit> edits;
  for (const Case& c : cases) {
    logits.insert(logits.end(), c.logits.begin(), c.logits.end());
    SamplePlan plan =
        PlanSample(vocab, c.tokens, c.prompt_tokens, c.params, c.stop, c.sample_index);
    plan.row.edits_begin += static_cast<uint32_t>(edits.size());
    plan.row.edits_end += static_cast<uint32_t>(edits.size());
    samples.push_back(plan.row);
    edits.insert(edits.end(), plan.edits.begin(), plan.edits.end());
  }
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<SampleRow> device_samples(samples);
  const DeviceArray<LogitEdit> device_edits(edits);
  const DeviceArray<std::byte> scratch(SampleScratchBytes(rows, vocab));
  const DeviceArray<int32_t> tokens(rows);

  ASSERT_CUDA(SampleTokens(*Gpu(), device_logits.data(), rows, vocab, device_samples.data(),
                           device_edits.data(), scratch.data(), tokens.data()));

  const std::vector<int32_t> chosen = tokens.Read();
  for (uint32_t row = 0; row < rows; ++row) {
    const Case& c = cases[row];
    std::vector<float> copy = c.logits;
    const TokenId expected =
        Sample(copy, c.tokens, c.prompt_tokens, c.params, c.stop, c.sample_index).id;
    ASSERT_EQ(chosen[row], expected) << "row " << row << ": " << Describe(c);
  }
}

class Dice {
 public:
  explicit Dice(uint32_t seed) : random_(seed) {}

  uint32_t Below(size_t count) { return static_cast<uint32_t>(random_() % count); }
  bool OneIn(uint32_t count) { return Below(count) == 0; }
  float Uniform() { return std::uniform_real_distribution<float>(0.0f, 1.0f)(random_); }
  uint64_t Seed() { return static_cast<uint64_t>(random_()) << 32 | random_(); }

  std::vector<float> Logits(size_t vocab) {
    std::normal_distribution<float> normal(0.0f, 0.1f + 6.0f * Uniform());
    std::vector<float> logits(vocab);
    for (float& logit : logits) logit = normal(random_);
    if (OneIn(2)) {  // Ties, and zeros of both signs.
      const float step = OneIn(2) ? 1.0f : 0.125f;
      for (float& logit : logits) logit = std::round(logit / step) * step;
    }
    if (OneIn(8)) std::fill(logits.begin(), logits.end(), 1.5f);
    if (OneIn(4)) {
      const float specials[] = {kNan, kInfinity, -kInfinity, -0.0f, 0.0f, 3e38f, -3e38f, 1e-40f};
      for (size_t i = 0; i < 1 + vocab / 8; ++i) {
        const float special = specials[Below(std::size(specials))];
        // An infinite one would be the only choice: seldom.
        logits[Below(vocab)] = special > 1.0f && !OneIn(20) ? -kInfinity : special;
      }
    }
    if (OneIn(40)) std::fill(logits.begin(), logits.end(), OneIn(2) ? -kInfinity : kNan);
    return logits;
  }

  SamplingParams Params(size_t vocab) {
    SamplingParams params;
    const float temperatures[] = {0.0f, 1.0f, 0.7f, 0.05f, 1e-38f, 2.0f, 0.1f + 2.0f * Uniform()};
    params.temperature = temperatures[Below(std::size(temperatures))];
    if (OneIn(2)) params.top_k = OneIn(2) ? 1 + Below(50) : Below(vocab + 3);
    if (OneIn(2)) params.top_p = OneIn(8) ? 1e-6f : OneIn(2) ? 0.9f : Uniform();
    if (OneIn(3)) params.min_p = OneIn(8) ? 1.0f : Uniform() * Uniform();
    params.seed = Seed();
    return params;
  }

  // Some ids are outside of the vocabulary, some occur twice.
  TokenId Token(size_t vocab) { return static_cast<TokenId>(Below(vocab + 4)) - 2; }

  void AddEdits(Case& c) {
    const size_t vocab = c.logits.size();
    if (OneIn(2)) c.params.repetition_penalty = 0.5f + Uniform();
    if (OneIn(2)) c.params.presence_penalty = 4.0f * Uniform() - 2.0f;
    if (OneIn(2)) c.params.frequency_penalty = 4.0f * Uniform() - 2.0f;
    const float biases[] = {100.0f, -100.0f, 0.3f, -kInfinity, 3e38f, -3e38f};
    for (size_t i = Below(20); i > 0; --i) {
      c.params.logit_bias.emplace_back(Token(vocab), biases[Below(std::size(biases))]);
      if (OneIn(3)) c.params.logit_bias.emplace_back(c.params.logit_bias.back().first, -0.7f);
    }
    const auto likeliest = std::max_element(c.logits.begin(), c.logits.end());
    c.stop.stop_token_ids = {Token(vocab), static_cast<TokenId>(likeliest - c.logits.begin())};
    c.stop.min_tokens = Below(60);
  }

  Case Any(size_t vocab) {
    Case c{.logits = Logits(vocab), .params = Params(vocab)};
    c.tokens.resize(Below(OneIn(20) ? 3000 : 60));
    for (TokenId& id : c.tokens) id = Token(vocab);
    c.prompt_tokens = Below(c.tokens.size() + 1);
    c.sample_index = Below(3);
    if (OneIn(2)) AddEdits(c);
    return c;
  }

 private:
  std::mt19937 random_;
};

class SamplingVocabularyTest : public testing::TestWithParam<uint32_t> {};

TEST_P(SamplingVocabularyTest, AnyOptionsChooseWhatTheHostChooses) {
  SKIP_WITHOUT_GPU();
  const uint32_t vocab = GetParam();
  Dice dice(vocab);
  const int rounds = std::max(4, (vocab > 5000 ? 8 : 40) / BATON_TEST_SLOWNESS);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Case> cases;
    for (int row = 0; row < 1 + 21 * (round % 4); ++row) cases.push_back(dice.Any(vocab));
    ASSERT_NO_FATAL_FAILURE(ExpectChoicesOfTheHost(cases)) << "round " << round;
  }
}

TEST_P(SamplingVocabularyTest, PlainTemperatureChoosesWhatTheHostChooses) {
  SKIP_WITHOUT_GPU();
  Dice dice(GetParam() + 1);
  std::vector<Case> cases(64);
  for (Case& c : cases) {
    c.logits = dice.Logits(GetParam());
    c.params = {.temperature = 0.2f + dice.Uniform(), .seed = dice.Seed()};
  }
  ExpectChoicesOfTheHost(cases);
}

// One tile, one segment, one part, and one more or less than those; vocabularies of real models.
INSTANTIATE_TEST_SUITE_P(Vocabularies, SamplingVocabularyTest,
                         testing::Values(1u, 2u, 7u, 31u, 511u, 512u, 513u, 1000u, 4095u, 4096u,
                                         4097u, 32000u, 128256u, 262144u));

TEST(SamplingCudaTest, ManyEqualLogitsAreCutAtTheLowerIds) {
  SKIP_WITHOUT_GPU();
  std::vector<Case> cases;
  for (uint32_t i = 0; i < 60; ++i) {
    Case c{.logits = std::vector<float>(5000, i % 2 == 0 ? 2.0f : -0.0f)};
    if (i % 2 == 1) std::fill_n(c.logits.begin(), 2500, 0.0f);
    c.params = {.temperature = 1.0f, .seed = i};
    if (i % 3 != 0) c.params.top_k = 1 + 97 * i;
    if (i % 3 != 1) c.params.top_p = static_cast<float>(1 + i) / 61.0f;
    cases.push_back(std::move(c));
  }
  ExpectChoicesOfTheHost(cases);
}

TEST(SamplingCudaTest, NoRowsAreNoWork) {
  SKIP_WITHOUT_GPU();
  EXPECT_EQ(SampleTokens(*Gpu(), nullptr, 0, 100, nullptr, nullptr, nullptr, nullptr), cudaSuccess);
  EXPECT_NE(
      SampleTokens(*Gpu(), nullptr, 1, kSampleVocabMax + 1, nullptr, nullptr, nullptr, nullptr),
      cudaSuccess);
}

}  // namespace
}  // namespace baton::cuda
