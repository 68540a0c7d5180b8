// Goal: a model that samples tokens itself gives what the host would have sampled from its logits,
// log-probabilities too, whatever the sequences of a step ask for. Method: the same sequences
// through a model of either kind; what they get is compared with ==.
#include "common/engine/executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/engine/testing/fake_model.h"

namespace baton {
namespace {

constexpr uint32_t kVocab = 200;

// Logits are random numbers that follow from the token and its position.
class NoiseModel final : public Model {
 public:
  explicit NoiseModel(bool samples) : samples_(samples) {}

  const ModelConfig& config() const override { return shape_.config(); }
  const std::string& fingerprint() const override { return name_; }
  const std::string& numerics() const override { return name_; }
  uint64_t parameter_count() const override { return 0; }
  absl::Status Forward(std::span<const BatchRow> rows, KvArena& /*cache*/, std::span<float> logits,
                       const LayerDone& /*layer_done*/) override {
    rows_to_host += logits.size() / kVocab;
    FillLogits(rows, logits);
    return absl::OkStatus();
  }
  bool samples_tokens() const override { return samples_; }
  absl::Status ForwardAndSample(std::span<const BatchRow> rows, KvArena& /*cache*/,
                                const TokenChoice& choice,
                                const LayerDone& /*layer_done*/) override {
    std::vector<float> logits(choice.samples.size() * kVocab);
    FillLogits(rows, logits);
    for (size_t i = 0; i < choice.raw_rows.size(); ++i) {
      std::copy_n(logits.begin() + choice.raw_rows[i] * kVocab, kVocab,
                  choice.raw_logits.begin() + static_cast<ptrdiff_t>(i * kVocab));
    }
    rows_to_host += choice.raw_rows.size();
    for (size_t i = 0; i < choice.samples.size(); ++i) {
      const SampleRow& row = choice.samples[i];
      const SamplePlan plan = {
          .row = row,
          .edits = {choice.edits.begin() + row.edits_begin, choice.edits.begin() + row.edits_end}};
      choice.tokens[i] =
          Sample(std::span(logits).subspan(i * kVocab, kVocab), plan, std::nullopt).id;
    }
    return absl::OkStatus();
  }

  size_t rows_to_host = 0;

 private:
  static void FillLogits(std::span<const BatchRow> rows, std::span<float> logits) {
    size_t next = 0;
    for (const BatchRow& row : rows) {
      if (row.logit_count == 0) continue;
      ASSERT_EQ(row.logit_count, 1u);
      const auto position = row.start + static_cast<uint32_t>(row.tokens.size());
      std::mt19937 random(position * kVocab + static_cast<uint32_t>(row.tokens.back()));
      std::normal_distribution<float> normal(0.0f, 2.0f);
      for (uint32_t id = 0; id < kVocab; ++id) logits[next++] = normal(random);
    }
    ASSERT_EQ(next, logits.size());
  }

  const FakeModel shape_{kVocab};
  const bool samples_;
  const std::string name_ = "noise";
};

// A model, and sequences that ask for different things.
class Batch {
 public:
  explicit Batch(bool samples)
      : model(samples),
        arena_(KvArena::Create(*device_, FakeModel(kVocab).Layout(4), 64).value()),
        executor_(&model, arena_.get()) {
    Add({.temperature = 0.0f});
    Add({.temperature = 0.9f, .top_k = 20, .seed = 7, .logprobs = 0});
    Add({.repetition_penalty = 1.3f, .seed = 8});
    Add({.presence_penalty = 0.5f,
         .frequency_penalty = 0.25f,
         .logit_bias = {{3, 4.0f}},
         .seed = 9,
         .logprobs = 5});
    sequences_[2].stop = {.stop_token_ids = {1, 2}, .min_tokens = 5};
    prompt_.tokens.assign(100, 1);
    prompt_.prompt_tokens = 100;
  }

  // The sequences' tokens of one step. The last one has a prompt that is not over yet.
  std::vector<std::optional<SampledToken>> Step() {
    std::vector<StepItem> items;
    for (Sequence& sequence : sequences_) {
      items.push_back({.sequence = &sequence, .count = sequence.pending()});
    }
    items.push_back({.sequence = &prompt_, .count = 1});
    return executor_.Run(items, nullptr).value();
  }

  // A sequence that has got its first token elsewhere.
  void Add(const SamplingParams& params) {
    Sequence& sequence = sequences_.emplace_back();
    sequence.tokens = {static_cast<TokenId>(sequences_.size()), 5, 6, 5};
    sequence.prompt_tokens = 3;
    sequence.sampling = params;
  }

  NoiseModel model;

 private:
  const std::unique_ptr<Device> device_ = MakeHostDevice();
  const std::unique_ptr<KvArena> arena_;
  Executor executor_;
  std::vector<Sequence> sequences_;
  Sequence prompt_;
};

// Goal: who changes more logits than a step brings to the device is sampled on the host, and only
// those.
TEST(ExecutorTest, TooManyEditsComeToTheHost) {
  SamplingParams many = {.seed = 3};
  for (int i = 0; i < 100000; ++i)
    many.logit_bias.emplace_back(i % int{kVocab}, 1e-5f * static_cast<float>(i % 7));
  Batch host(false);
  Batch device(true);
  for (Batch* batch : {&host, &device}) {
    for (int i = 0; i < 4; ++i) batch->Add(many);
  }
  for (int step = 0; step < 3; ++step) {
    const auto expected = host.Step();
    const auto sampled = device.Step();

    for (size_t i = 0; i + 1 < sampled.size(); ++i) {
      ASSERT_EQ(sampled[i]->id, expected[i]->id) << "step " << step << " sequence " << i;
    }
  }
  // Two for their log-probabilities; of the four two fit.
  EXPECT_EQ(device.model.rows_to_host, 3 * (2u + 2u));
}

TEST(ExecutorTest, ADeviceThatSamplesGivesWhatTheHostWould) {
  Batch host(false);
  Batch device(true);
  for (int step = 0; step < 50; ++step) {
    const auto expected = host.Step();
    const auto sampled = device.Step();

    ASSERT_EQ(sampled.size(), expected.size());
    ASSERT_FALSE(sampled.back().has_value()) << "in the middle of a prompt";
    for (size_t i = 0; i + 1 < sampled.size(); ++i) {
      ASSERT_EQ(sampled[i]->id, expected[i]->id) << "step " << step << " sequence " << i;
      ASSERT_EQ(sampled[i]->logprob, expected[i]->logprob) << "step " << step << " sequence " << i;
      ASSERT_EQ(sampled[i]->top_logprobs, expected[i]->top_logprobs);
    }
    EXPECT_EQ(sampled[3]->top_logprobs.size(), 5u);
    EXPECT_LT(sampled[1]->logprob, 0.0f);
  }
  EXPECT_EQ(host.model.rows_to_host, 50 * 4u);
  EXPECT_EQ(device.model.rows_to_host, 50 * 2u) << "of those that ask for log-probabilities alone";
}

}  // namespace
}  // namespace baton
