// Goal: whole models compute on a GPU what Hugging Face transformers computes. Method: the golden
// models of tests/goldens/models (see make_goldens.py) through libbaton_cuda.so: in float32 nearly
// to the last bit, in bfloat16 within what rounding of activations does to such models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/device/device.h"
#include "common/device/testing/required_gpus.h"
#include "common/kv_cache/kv_arena.h"
#include "common/model/decoder.h"
#include "common/model/model.h"
#include "common/model/shard.h"
#include "common/model/warm_up.h"
#include "common/model/weights.h"

namespace baton {
namespace {

constexpr uint32_t kTokensMax = 128;  // The context of every golden model.
constexpr uint32_t kRowsMax = 600;
constexpr uint32_t kBlockTokens = 16;
// Rounding to bfloat16 after every operation: 2^-8 each, over some dozens of roundings.
constexpr float kBfloat16Error = 0.15f;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Golden {
  explicit Golden(const std::string& name) : folder("tests/goldens/models/" + name) {
    const auto json = nlohmann::json::parse(ReadAll(folder + "/expected.json"));
    prompt = json.at("prompt").get<std::vector<TokenId>>();
    greedy = json.at("greedy").get<std::vector<TokenId>>();
    const std::string bytes = ReadAll(folder + "/logits.f32");
    logits.resize(bytes.size() / sizeof(float));
    std::memcpy(logits.data(), bytes.data(), bytes.size());
  }

  std::string folder;
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;
  std::vector<float> logits;  // [prompt, vocab]
};

// Largest difference, in units of the largest logit.
float RelativeError(const std::vector<float>& ours, const std::vector<float>& theirs) {
  float difference = 0.0f;
  float largest = 0.0f;
  for (size_t i = 0; i < theirs.size(); ++i) {
    // A NaN is an infinite error.
    const float error = std::abs(ours[i] - theirs[i]);
    difference = error <= difference ? difference : std::isfinite(error) ? error : INFINITY;
    largest = std::max(largest, std::abs(theirs[i]));
  }
  return difference / largest;
}

class ModelCudaTest : public testing::TestWithParam<const char*> {
 protected:
  ModelCudaTest() : golden_(GetParam()) {}

  void SetUp() override { SKIP_WITHOUT_GPUS(1, Open(1)); }
  // The model is then loaded on so many GPUs together.
  absl::Status Open(uint32_t count) {
    absl::StatusOr<std::vector<std::unique_ptr<Device>>> devices = OpenDevices("cuda", count);
    if (devices.ok()) devices_ = *std::move(devices);
    return devices.status();
  }

  // Whether two GPUs can compute it together.
  absl::Status CanBeHalved() const {
    return ConfigOfShard(ModelConfig::Load(golden_.folder).value(), 2).status();
  }
  bool HasExperts() const { return ModelConfig::Load(golden_.folder).value().experts.count > 0; }

  void Load(const std::string& weights, DType kv_type) {
    std::vector<Device*> devices;
    for (const std::unique_ptr<Device>& device : devices_) devices.push_back(device.get());
    Load(weights, kv_type, devices);
  }
  void Load(const std::string& weights, DType kv_type, const std::vector<Device*>& devices) {
    absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(
        devices, {.directory = golden_.folder, .weights = weights, .batch_tokens_max = kRowsMax});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    const ModelConfig& config = model_->config();
    cache_ = KvArena::Create(devices,
                             {.layers = config.layers,
                              .kv_heads = config.kv_heads,
                              .head_dim = config.head_dim,
                              .block_tokens = kBlockTokens,
                              .dtype = kv_type},
                             64)
                 .value();
    blocks_.clear();
    for (uint32_t i = 0; i < 4 * kTokensMax / kBlockTokens; ++i) {
      blocks_.push_back(BlockId{(i * 7 + 3) % 64});
    }
  }

  std::span<const BlockId> BlocksOf(uint32_t sequence) const {
    const size_t count = kTokensMax / kBlockTokens;
    return std::span(blocks_).subspan(sequence * count, count);
  }
  BatchRow Row(std::span<const TokenId> tokens, size_t begin, size_t end, uint32_t sequence = 0) {
    return {.tokens = tokens.subspan(begin, end - begin),
            .start = static_cast<uint32_t>(begin),
            .blocks = BlocksOf(sequence),
            .logit_count = static_cast<uint32_t>(end - begin)};
  }
  std::vector<float> Run(std::span<const BatchRow> rows) {
    size_t count = 0;
    for (const BatchRow& row : rows) count += row.logit_count;
    std::vector<float> logits(count * model_->config().vocab_size);
    const absl::Status status = model_->Forward(rows, *cache_, logits, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }
  std::vector<float> RunPrompt() {
    const BatchRow row = Row(golden_.prompt, 0, golden_.prompt.size());
    return Run({&row, 1});
  }

  // What 8 bits cost is up to the model, and the CPU with the same weights and cache shows it. On
  // the GPU it is that and bfloat16.
  void ExpectAsNearAsTheCpu(const std::string& weights, DType kv_type) {
    Load(weights, kv_type, {cpu_.get()});
    const float cpu_error = RelativeError(RunPrompt(), golden_.logits);
    Load(weights, kv_type);
    const float error = RelativeError(RunPrompt(), golden_.logits);
    RecordProperty("cpu_relative_error", testing::PrintToString(cpu_error));
    RecordProperty("relative_error", testing::PrintToString(error));
    EXPECT_LE(error, cpu_error + kBfloat16Error);
  }

  const Golden golden_;
  const std::unique_ptr<Device> cpu_ = MakeHostDevice();
  std::vector<std::unique_ptr<Device>> devices_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvArena> cache_;
  std::vector<BlockId> blocks_;
};

TEST_P(ModelCudaTest, LogitsAgreeInFloat32) {
  Load("f32", DType::kF32);
  const float error = RelativeError(RunPrompt(), golden_.logits);
  RecordProperty("relative_error", testing::PrintToString(error));

  EXPECT_LE(error, 1e-4f);
}

// The first half at once; the others one by one.
TEST_P(ModelCudaTest, LogitsOfTwoGpusAgreeInFloat32) {
  SKIP_WITHOUT_GPUS(2, Open(2));
  if (!CanBeHalved().ok()) GTEST_SKIP() << CanBeHalved();
  Load("f32", DType::kF32);
  std::vector<float> logits;
  const size_t half = golden_.prompt.size() / 2;
  for (size_t begin = 0; begin < golden_.prompt.size();) {
    const size_t end = std::max(half, begin + 1);
    const BatchRow row = Row(golden_.prompt, begin, end);
    const std::vector<float> part = Run({&row, 1});
    logits.insert(logits.end(), part.begin(), part.end());
    begin = end;
  }
  const float error = RelativeError(logits, golden_.logits);
  RecordProperty("relative_error", testing::PrintToString(error));

  EXPECT_LE(error, 1e-4f);
}

TEST_P(ModelCudaTest, LogitsAgreeInBfloat16) {
  if (HasExperts()) GTEST_SKIP() << "a rounded logit may choose another expert";
  Load("bf16", DType::kBF16);
  const float error = RelativeError(RunPrompt(), golden_.logits);
  RecordProperty("relative_error", testing::PrintToString(error));

  EXPECT_LE(error, kBfloat16Error);
}

TEST_P(ModelCudaTest, Int8WeightsAndCacheStayAsNearAsOnTheCpu) {
  if (HasExperts()) GTEST_SKIP() << "a rounded logit may choose another expert";
  ExpectAsNearAsTheCpu("int8", DType::kI8);
  EXPECT_LE(RelativeError(RunPrompt(), golden_.logits), 0.3f);
}

TEST_P(ModelCudaTest, Fp8WeightsAndCacheStayAsNearAsOnTheCpu) {
  if (HasExperts()) GTEST_SKIP() << "a rounded logit may choose another expert";
  ExpectAsNearAsTheCpu("fp8", DType::kFp8);
}

// Steps of one token: each shape is recorded at its second step and replayed from then on.
TEST_P(ModelCudaTest, GreedyTokensAreEqual) {
  Load("f32", DType::kF32);
  std::vector<TokenId> tokens = golden_.prompt;
  size_t done = 0;
  for (size_t i = 0; i < golden_.greedy.size(); ++i) {
    const BatchRow row = Row(tokens, done, tokens.size());
    const std::vector<float> logits = Run({&row, 1});
    done = tokens.size();
    const auto last = logits.end() - model_->config().vocab_size;
    tokens.push_back(static_cast<TokenId>(std::max_element(last, logits.end()) - last));
  }

  EXPECT_THAT(std::span(tokens).subspan(golden_.prompt.size()),
              testing::ElementsAreArray(golden_.greedy));
}

// The same with tokens that the GPU chooses, three sequences in a step that is filled up to four;
// of one of them the logits come, too.
TEST_P(ModelCudaTest, GreedyTokensThatTheGpuChoosesAreEqual) {
  Load("f32", DType::kF32);
  ASSERT_TRUE(model_->samples_tokens());
  std::vector<TokenId> sequences[3] = {golden_.prompt, golden_.prompt, golden_.prompt};
  size_t done = 0;
  for (size_t i = 0; i < golden_.greedy.size(); ++i) {
    std::vector<BatchRow> rows;
    for (uint32_t sequence = 0; sequence < 3; ++sequence) {
      rows.push_back(Row(sequences[sequence], done, sequences[sequence].size(), sequence));
      rows.back().logit_count = 1;
    }
    done = sequences[0].size();
    const std::vector<SampleRow> samples(3);
    std::vector<TokenId> chosen(3);
    const std::vector<uint32_t> raw_rows = {1};
    std::vector<float> raw(model_->config().vocab_size);
    const absl::Status status = model_->ForwardAndSample(rows, *cache_,
                                                         {.samples = samples,
                                                          .edits = {},
                                                          .tokens = chosen,
                                                          .raw_rows = raw_rows,
                                                          .raw_logits = raw},
                                                         nullptr);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(std::max_element(raw.begin(), raw.end()) - raw.begin(), chosen[1]);
    for (uint32_t sequence = 0; sequence < 3; ++sequence) {
      sequences[sequence].push_back(chosen[sequence]);
    }
  }

  for (const std::vector<TokenId>& tokens : sequences) {
    EXPECT_THAT(std::span(tokens).subspan(golden_.prompt.size()),
                testing::ElementsAreArray(golden_.greedy));
  }
}

// The same with steps that are started before the one before has ended. Later ones have no tokens
// from the host, fewer sequences in another order, and one that was not in the step before.
class StartedStepsTest : public ModelCudaTest {
 protected:
  void ExpectGreedyTokens();
};

void StartedStepsTest::ExpectGreedyTokens() {
  Load("f32", DType::kF32);
  constexpr uint32_t kSequences = 4;
  ASSERT_TRUE(model_->CanStart(kSequences));
  const std::vector<TokenId>& greedy = golden_.greedy;
  const auto prompt_tokens = static_cast<uint32_t>(golden_.prompt.size());
  std::vector<BatchRow> prompts;
  for (uint32_t sequence = 0; sequence < kSequences; ++sequence) {
    prompts.push_back(Row(golden_.prompt, 0, prompt_tokens, sequence));
  }
  Run(prompts);
  // Those of each step, in its order.
  std::vector<std::vector<uint32_t>> steps;
  for (size_t step = 0; step + 1 < greedy.size(); ++step) {
    steps.push_back(step % 3 == 0   ? std::vector<uint32_t>{0, 1, 2}
                    : step % 3 == 1 ? std::vector<uint32_t>{2, 0}
                                    : std::vector<uint32_t>{0, 2, 3});
  }
  std::vector<uint32_t> done(kSequences);  // Tokens that each sequence has run, or will have.
  const auto start = [&](size_t step) {
    std::vector<DecodeRow> rows;
    for (const uint32_t sequence : steps[step]) {
      DecodeRow row = {.start = prompt_tokens + done[sequence], .blocks = BlocksOf(sequence)};
      const std::vector<uint32_t> before = step == 0 ? std::vector<uint32_t>() : steps[step - 1];
      const auto place = std::find(before.begin(), before.end(), sequence);
      if (place == before.end()) {
        row.token = greedy[done[sequence]];
      } else {
        row.chosen_by = static_cast<uint32_t>(place - before.begin());
      }
      ++done[sequence];
      rows.push_back(row);
    }
    const std::vector<SampleRow> samples(rows.size());
    return model_->StartStep(rows, *cache_, samples, {});
  };
  std::vector<uint32_t> checked(kSequences);

  ASSERT_TRUE(start(0).ok());
  for (size_t step = 0; step < steps.size(); ++step) {
    if (step + 1 < steps.size()) {
      const absl::Status status = start(step + 1);
      ASSERT_TRUE(status.ok()) << status;
    }
    std::vector<TokenId> chosen(steps[step].size());
    const absl::Status status = model_->FinishStep(chosen);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < chosen.size(); ++i) {
      const uint32_t sequence = steps[step][i];
      ASSERT_EQ(chosen[i], greedy[++checked[sequence]]) << "step " << step << " of " << sequence;
    }
  }
  EXPECT_EQ(checked[0], greedy.size() - 1);
}

TEST_P(StartedStepsTest, ChooseGreedyTokens) {
  if (HasExperts()) GTEST_SKIP() << "in float32 the host chooses the experts";
  ExpectGreedyTokens();
}

TEST_P(StartedStepsTest, ChooseGreedyTokensOnTwoGpus) {
  if (HasExperts()) GTEST_SKIP() << "in float32 the host chooses the experts";
  SKIP_WITHOUT_GPUS(2, Open(2));
  if (!CanBeHalved().ok()) GTEST_SKIP() << CanBeHalved();
  ExpectGreedyTokens();
}

// Goal: what a started step is told of choosing tokens is what one that waits is told. The rows of
// each step have other draws, and other numbers of edits.
class StartedSamplingTest : public ModelCudaTest {
 protected:
  void ExpectTokensOfStepsThatWait();
};

void StartedSamplingTest::ExpectTokensOfStepsThatWait() {
  Load("f32", DType::kF32);
  constexpr uint32_t kSequences = 3;
  constexpr uint32_t kSteps = 12;
  const auto vocab = static_cast<uint32_t>(model_->config().vocab_size);
  const auto prompt_tokens = static_cast<uint32_t>(golden_.prompt.size());
  std::vector<BatchRow> prompts;
  for (uint32_t i = 0; i < kSequences; ++i) {
    prompts.push_back(Row(golden_.prompt, 0, prompt_tokens, i));
  }
  std::vector<LogitEdit> edits;
  const auto samples_of = [&](uint32_t step) {
    edits.clear();
    std::vector<SampleRow> samples;
    for (uint32_t i = 0; i < kSequences; ++i) {
      SampleRow& sample = samples.emplace_back();
      sample = {.temperature = 3.0f, .top_k = i == 1 ? 40u : 0u, .top_p = i == 2 ? 0.9f : 1.0f};
      sample.u = static_cast<float>((step * 37 + i * 11) % 64) / 64.0f;
      sample.edits_begin = static_cast<uint32_t>(edits.size());
      for (uint32_t edit = 0; edit < (step + i) % 4; ++edit) {
        const auto id = static_cast<TokenId>((step * 5 + i + edit * 50) % vocab);
        edits.push_back({.id = id, .bias = 4.0f, .flags = edit == 1 ? kBarred : kBiased});
      }
      sample.edits_end = static_cast<uint32_t>(edits.size());
    }
    return samples;
  };

  Run(prompts);
  std::vector<std::vector<TokenId>> expected;
  std::vector<TokenId> tokens(kSequences, 7);
  for (uint32_t step = 0; step < kSteps; ++step) {
    std::vector<BatchRow> rows;
    for (uint32_t i = 0; i < kSequences; ++i) {
      rows.push_back({.tokens = {&tokens[i], 1},
                      .start = prompt_tokens + step,
                      .blocks = BlocksOf(i),
                      .logit_count = 1});
    }
    const std::vector<SampleRow> samples = samples_of(step);
    expected.emplace_back(kSequences);
    const TokenChoice choice = {.samples = samples, .edits = edits, .tokens = expected.back()};
    ASSERT_TRUE(model_->ForwardAndSample(rows, *cache_, choice, nullptr).ok());
    tokens = expected.back();
  }

  Run(prompts);
  std::vector<std::vector<TokenId>> chosen;
  for (uint32_t step = 0; step <= kSteps; ++step) {
    std::vector<DecodeRow> rows;
    for (uint32_t i = 0; i < kSequences; ++i) {
      rows.push_back({.token = 7, .start = prompt_tokens + step, .blocks = BlocksOf(i)});
      if (step > 0) rows.back().chosen_by = i;
    }
    if (step < kSteps) {
      const std::vector<SampleRow> samples = samples_of(step);
      ASSERT_TRUE(model_->StartStep(rows, *cache_, samples, edits).ok());
    }
    if (step == 0) continue;
    chosen.emplace_back(kSequences);
    ASSERT_TRUE(model_->FinishStep(chosen.back()).ok());
  }
  EXPECT_EQ(chosen, expected);
}

TEST_P(StartedSamplingTest, ChoosesTheTokensOfStepsThatWait) { ExpectTokensOfStepsThatWait(); }

TEST_P(StartedSamplingTest, ChoosesThemOnTwoGpus) {
  SKIP_WITHOUT_GPUS(2, Open(2));
  ExpectTokensOfStepsThatWait();
}

INSTANTIATE_TEST_SUITE_P(Models, StartedSamplingTest, testing::Values("llama", "gpt2"));

// Goal: weights that are tied take their memory once, if the head is what is stored.
class TiedWeightsTest : public ModelCudaTest {
 protected:
  std::unique_ptr<ModelWeights> LoadAs(WeightForm form) {
    Device& device = *devices_[0];
    context_ = KernelContext::Create({.device = &device, .activations = DType::kF32}).value();
    return ModelWeights::Load(device, *context_, ModelConfig::Load(golden_.folder).value(),
                              golden_.folder, {.form = form})
        .value();
  }

  std::unique_ptr<KernelContext> context_;
};

TEST_P(TiedWeightsTest, LieOnAGpuOnce) {
  const auto once = LoadAs(WeightForm::kF32);
  EXPECT_EQ(once->embedding().data(), once->head().data());
  const auto twice = LoadAs(WeightForm::kInt8);
  EXPECT_NE(twice->embedding().data(), twice->head().data());
}

INSTANTIATE_TEST_SUITE_P(Models, TiedWeightsTest, testing::Values("llama_tied", "gpt2"));

// Goal: the first step of a client is one that the device has recorded before.
class WarmModelTest : public ModelCudaTest {};

TEST_P(WarmModelTest, ReplaysItsFirstStep) {
  Load("f32", DType::kF32);
  const auto& decoder = dynamic_cast<const Decoder&>(*model_);
  const uint32_t steps = WarmUp(*model_, *cache_, {.chunk_tokens = 40, .sequences_max = 5}).value();
  EXPECT_EQ(steps, 1 + 2 * 4u);  // Of 1, 2, 4 and 5 sequences.
  const uint64_t replayed = decoder.replayed_steps();
  const auto prompt_tokens = static_cast<uint32_t>(golden_.prompt.size());
  const BatchRow prompt = Row(golden_.prompt, 0, prompt_tokens);
  Run({&prompt, 1});

  const DecodeRow row = {.token = golden_.greedy[0], .start = prompt_tokens, .blocks = BlocksOf(0)};
  const std::vector<DecodeRow> rows(3, row);
  ASSERT_TRUE(model_->StartStep(rows, *cache_, std::vector<SampleRow>(3), {}).ok());
  std::vector<TokenId> tokens(3);
  ASSERT_TRUE(model_->FinishStep(tokens).ok());

  EXPECT_EQ(decoder.replayed_steps(), replayed + 1);
  EXPECT_THAT(tokens, testing::Each(golden_.greedy[1]));
}

TEST_P(WarmModelTest, ComputesTheSameOnTwoGpus) {
  SKIP_WITHOUT_GPUS(2, Open(2));
  Load("f32", DType::kF32);
  EXPECT_EQ(WarmUp(*model_, *cache_, {.chunk_tokens = 40, .sequences_max = 5}).value(), 9u);

  EXPECT_LE(RelativeError(RunPrompt(), golden_.logits), 1e-4f);
}

INSTANTIATE_TEST_SUITE_P(Models, WarmModelTest, testing::Values("llama", "gpt2"));

// More rows than logits are computed of at a time.
class ManyRowsTest : public ModelCudaTest {};

TEST_P(ManyRowsTest, EachHasItsOwnEdits) {
  Load("f32", DType::kF32);
  const std::vector<BatchRow> rows(kRowsMax, {.tokens = std::span(golden_.prompt).first(1),
                                              .start = 0,
                                              .blocks = BlocksOf(0),
                                              .logit_count = 1});
  const uint32_t vocab = model_->config().vocab_size;
  std::vector<SampleRow> samples(kRowsMax);
  std::vector<LogitEdit> edits;
  std::vector<TokenId> expected;
  for (uint32_t i = 0; i < kRowsMax; ++i) {
    samples[i].edits_begin = static_cast<uint32_t>(edits.size());
    // Some have none, and are all the same then.
    if (i % 3 > 0) {
      expected.push_back(static_cast<TokenId>(i % vocab));
      edits.push_back({.id = expected.back(), .bias = 1e6f, .flags = kBiased});
    }
    samples[i].edits_end = static_cast<uint32_t>(edits.size());
  }
  std::vector<TokenId> chosen(kRowsMax);

  const absl::Status status = model_->ForwardAndSample(
      rows, *cache_, {.samples = samples, .edits = edits, .tokens = chosen}, nullptr);

  ASSERT_TRUE(status.ok()) << status;
  std::vector<TokenId> edited;
  for (uint32_t i = 0; i < kRowsMax; ++i) {
    if (i % 3 > 0) {
      edited.push_back(chosen[i]);
    } else {
      EXPECT_EQ(chosen[i], chosen[0]) << "row " << i;
    }
  }
  EXPECT_EQ(edited, expected);
}

INSTANTIATE_TEST_SUITE_P(Llama, ManyRowsTest, testing::Values("llama"));

constexpr const char* kModels[] = {
    "gemma",        "gemma2",       "gemma2_bf16", "gemma3",    "gpt2",        "llama",
    "llama_tied",   "llama_llama3", "llama_bf16",  "llama_f16", "mistral",     "mistral_window",
    "mixtral",      "mixtral_bf16", "phi3",        "phi3_long", "qwen2",       "qwen2_moe",
    "qwen2_window", "qwen2_yarn",   "qwen3",       "qwen3_moe", "qwen3_window"};

std::string NameOf(const testing::TestParamInfo<const char*>& model) { return model.param; }

INSTANTIATE_TEST_SUITE_P(Models, ModelCudaTest, testing::ValuesIn(kModels), NameOf);
INSTANTIATE_TEST_SUITE_P(Models, StartedStepsTest, testing::ValuesIn(kModels), NameOf);

}  // namespace
}  // namespace baton
