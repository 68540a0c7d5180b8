// Goal: a model that samples tokens itself gives what the host would have sampled from its logits,
// log-probabilities too, whatever the sequences of a step ask for, and whether steps wait for each
// other or not. Method: the same sequences through a model of either kind; what they get is
// compared with ==.
#include "common/engine/executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/engine/testing/fake_model.h"
#include "common/engine/testing/starting_model.h"

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

// Sequences of the fake model, whose tokens depend on all that is in their blocks.
class FakeBatch {
 public:
  static constexpr uint32_t kBlocks = 16;  // Of a sequence.

  explicit FakeBatch(uint64_t starts_seed = 0)
      : arena_(KvArena::Create(*device_, model.Layout(4), 8 * kBlocks).value()),
        executor(&starting_model, arena_.get()) {
    if (starts_seed != 0) starting_model.StartSteps(starts_seed);
  }

  // A sequence with a prompt of its own, which has run but for the last token.
  void Add(const SamplingParams& params, const StopParams& stop = {}) {
    const auto number = static_cast<uint32_t>(sequences.size());
    Sequence& sequence = *sequences.emplace_back(std::make_unique<Sequence>());
    sequence.tokens = {static_cast<TokenId>(number), 5, 6, 5};
    sequence.prompt_tokens = 3;
    sequence.total_tokens_max = 4 * kBlocks;
    sequence.sampling = params;
    sequence.stop = stop;
    sequence.arrival = number;
    sequence.blocks = BlockTable(&pool_);
    sequence.blocks.Append(pool_.Acquire(kBlocks).value());
    const BatchRow prompt = {.tokens = std::span(sequence.tokens).first(3),
                             .start = 0,
                             .blocks = sequence.blocks.blocks(),
                             .logit_count = 0};
    EXPECT_TRUE(FakeModel().Forward({&prompt, 1}, *arena_, {}, nullptr).ok());
    sequence.computed = 3;
  }
  std::vector<StepItem> Items() const {
    std::vector<StepItem> items;
    for (const std::unique_ptr<Sequence>& sequence : sequences) {
      items.push_back({.sequence = sequence.get(), .count = 1});
    }
    return items;
  }
  // A step of all; the next one may be of all, too.
  absl::Status Step() {
    return executor.Run(Items(), nullptr, [this] { return Items(); }).status();
  }

  FakeModel model;
  StartingModel starting_model{&model};

 private:
  const std::unique_ptr<Device> device_ = MakeHostDevice();
  BlockPool pool_{8 * kBlocks};
  const std::unique_ptr<KvArena> arena_;

 public:
  Executor executor;
  std::vector<std::unique_ptr<Sequence>> sequences;
};

// The same sequences, whose steps wait, and are started ahead as a seed draws.
class StartedStepsTest : public testing::TestWithParam<uint64_t> {
 protected:
  void Add(const SamplingParams& params, const StopParams& stop = {}) {
    waiting_.Add(params, stop);
    started_.Add(params, stop);
  }
  void AddDrawn(uint64_t count) {
    for (uint64_t seed = 1; seed <= count; ++seed) Add({.temperature = 5.0f, .seed = seed});
  }
  void ExpectTheSame() const {
    for (size_t i = 0; i < waiting_.sequences.size(); ++i) {
      ASSERT_EQ(started_.sequences[i]->tokens, waiting_.sequences[i]->tokens) << "sequence " << i;
      ASSERT_EQ(started_.sequences[i]->computed, waiting_.sequences[i]->computed);
    }
  }

  FakeBatch waiting_;
  FakeBatch started_{GetParam()};
};

TEST_P(StartedStepsTest, GiveTheTokensOfStepsThatWait) {
  Add({.temperature = 0.0f});
  Add({.temperature = 5.0f, .top_k = 50, .seed = 7});
  Add({.temperature = 5.0f, .top_p = 0.9f, .logit_bias = {{3, 1.0f}, {9, -1.0f}}, .seed = 8});
  Add({.temperature = 5.0f, .seed = 9}, {.stop_token_ids = {1, 2, 3, 4}, .min_tokens = 20});
  for (int step = 0; step < 40; ++step) {
    ASSERT_TRUE(waiting_.Step().ok());
    ASSERT_TRUE(started_.Step().ok());
    ASSERT_EQ(started_.executor.started().size(), 4u);
    ASSERT_NO_FATAL_FAILURE(ExpectTheSame()) << "step " << step;
  }
  EXPECT_TRUE(waiting_.executor.started().empty());
}

// Goal: what a sequence gets does not depend on who is in the started step beside it.
TEST_P(StartedStepsTest, SomeComeAndOthersGo) {
  AddDrawn(4);
  // Those that are in a step when it is started, and those that still are when it is run: who was
  // left out comes back with a token that is known.
  const std::vector<std::vector<size_t>> started_of = {{0, 1}, {0, 1}, {0, 1, 2}, {2, 1, 0},
                                                       {1, 0}, {1, 3}, {3, 0, 1}, {0, 1, 2, 3}};
  const std::vector<std::vector<size_t>> steps = {{0, 1}, {1},    {0, 1, 2}, {2, 0},
                                                  {1},    {3, 1}, {3, 1},    {3, 0}};
  for (size_t step = 0; step < steps.size(); ++step) {
    const bool last = step + 1 == steps.size();
    for (FakeBatch* batch : {&waiting_, &started_}) {
      const auto pick = [all = batch->Items()](const std::vector<size_t>& places) {
        std::vector<StepItem> items;
        for (const size_t place : places) items.push_back(all[place]);
        return items;
      };
      // Sometimes the device is done before it is asked.
      if (step % 3 == 1) batch->executor.Settle();
      const auto ahead = [&] {
        return last ? std::vector<StepItem>() : pick(started_of[step + 1]);
      };
      const auto sampled = batch->executor.Run(pick(steps[step]), nullptr, ahead);
      ASSERT_TRUE(sampled.ok()) << sampled.status();
    }
    ASSERT_EQ(started_.executor.started().size(), last ? 0 : started_of[step + 1].size());
    ASSERT_NO_FATAL_FAILURE(ExpectTheSame()) << "step " << step;
  }
}

// Goal: a step that nobody wants leaves nothing behind.
TEST_P(StartedStepsTest, WhatIsForgottenIsRunAgain) {
  AddDrawn(2);
  for (int step = 0; step < 20; ++step) {
    ASSERT_TRUE(waiting_.Step().ok());
    ASSERT_TRUE(started_.Step().ok());
    ASSERT_EQ(started_.executor.started().size(), 2u);
    if (step % 2 == 0) started_.executor.Forget();
  }
  ExpectTheSame();
}

INSTANTIATE_TEST_SUITE_P(Draws, StartedStepsTest, testing::Values(1, 2, 3, 4));

TEST(ExecutorTest, NothingIsStartedThatNeedsTheTokenBefore) {
  for (const SamplingParams& params :
       {SamplingParams{.presence_penalty = 0.5f}, SamplingParams{.frequency_penalty = 0.5f},
        SamplingParams{.repetition_penalty = 1.2f}}) {
    FakeBatch batch(1);
    batch.Add({});
    batch.Add(params);
    ASSERT_TRUE(batch.Step().ok());
    EXPECT_TRUE(batch.executor.started().empty());
    ASSERT_TRUE(batch.Step().ok());
  }
  FakeBatch batch(1);
  batch.Add({.logprobs = 1});
  ASSERT_TRUE(batch.Step().ok());
  EXPECT_TRUE(batch.executor.started().empty()) << "the host needs the logits";
}

TEST(ExecutorTest, AfterAnErrorNothingIsStarted) {
  constexpr int kSeeds = 64;
  int seeds_that_failed = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    FakeBatch batch(seed);
    batch.Add({});
    const std::vector<TokenId> expected = FakeContinuation(batch.sequences[0]->tokens, 10);
    const size_t prompt = batch.sequences[0]->tokens.size();
    ASSERT_TRUE(batch.Step().ok());
    batch.model.FailNext(absl::InternalError("bad day"));
    // The step that fails is the one that was started already, or the one after it, which is then
    // tried again.
    int failed = 0;
    for (int step = 0; step < 9; ++step) {
      if (batch.Step().ok()) continue;
      ++failed;
      EXPECT_TRUE(batch.executor.started().empty());
    }
    EXPECT_LE(failed, 1);
    seeds_that_failed += failed;
    std::vector<TokenId> got(batch.sequences[0]->tokens.begin() + static_cast<ptrdiff_t>(prompt),
                             batch.sequences[0]->tokens.end());
    EXPECT_EQ(got, std::vector<TokenId>(expected.begin(), expected.end() - failed));
  }
  EXPECT_GT(seeds_that_failed, 0) << "no step failed that was waited for";
  EXPECT_LT(seeds_that_failed, kSeeds) << "no step failed when it was started behind another";
}

}  // namespace
}  // namespace baton
