// Goal: several ranks compute what one does, up to the rounding of sums that are split elsewhere;
// each keeps the heads that are its own; and nobody waits for a rank that has failed. Method: the
// golden models of golden_test.cc, with two and four ranks on the CPU.
#include "common/model/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/model/json_file.h"
#include "common/model/testing/tiny_model.h"

namespace baton {
namespace {

using testing::HasSubstr;

// As in golden_test.cc: what float32 may differ from transformers. The ranks' own part is smaller:
// two sums of up to 40 terms in each of up to four layers that are split elsewhere, with an error
// of at most 8 * 40 * 2^-24 = 2e-5 in units of what is added up.
constexpr float kToleranceMax = 1e-4f;
constexpr uint32_t kTokensMax = 128;  // The context of every golden model.

std::string Folder(const std::string& name) { return "tests/goldens/models/" + name; }

// Host memory whose copies to the host can be made to fail: the shared expert of Qwen2-MoE, in the
// middle of a layer, needs one.
class FailingDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string name() const override { return "failing"; }
  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override { return host_->Allocate(bytes); }
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override {
    return host_->AllocatePinned(bytes);
  }
  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return host_->CopyFromHost(to, from, bytes);
  }
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override {
    if (fails) return absl::UnavailableError("the device is lost");
    return host_->CopyToHost(to, from, bytes);
  }

  absl::Status Gather(std::byte* to, std::span<const std::span<const std::byte>> from) override {
    return host_->Gather(to, from);
  }
  absl::Status Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) override {
    return host_->Scatter(to, from);
  }

  std::atomic<bool> fails = false;

 private:
  void Free(std::byte* /*data*/, size_t /*bytes*/, bool /*pinned*/) override {
  }  // Memory is host_'s.

  const std::unique_ptr<Device> host_ = MakeHostDevice();
};

// A model on so many devices, with a cache for one sequence.
class Runner {
 public:
  Runner(const std::string& folder, uint32_t ranks, const std::string& weights = "") {
    std::vector<Device*> borrowed;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      borrowed.push_back(devices_.emplace_back(std::make_unique<FailingDevice>()).get());
    }
    model_ =
        Model::Load(
            borrowed,
            {.directory = folder, .weights = weights, .threads = 2, .batch_tokens_max = kTokensMax})
            .value();
    const KvLayout layout = {.layers = model_->config().layers,
                             .kv_heads = model_->config().kv_heads,
                             .head_dim = model_->config().head_dim,
                             .block_tokens = 8};
    cache_ = KvArena::Create(borrowed, layout, layout.BlocksFor(kTokensMax)).value();
    for (uint32_t i = cache_->block_count(); i > 0; --i) blocks_.push_back(BlockId{i - 1});
  }

  // Runs tokens [begin, end) and appends the logits of the last `logit_count`.
  absl::Status Run(std::span<const TokenId> tokens, size_t begin, size_t end, size_t logit_count,
                   std::vector<float>* logits, const Model::LayerDone& layer_done = nullptr) {
    const BatchRow row = {.tokens = tokens.subspan(begin, end - begin),
                          .start = static_cast<uint32_t>(begin),
                          .blocks = blocks_,
                          .logit_count = static_cast<uint32_t>(logit_count)};
    const size_t before = logits->size();
    logits->resize(before + logit_count * model_->config().vocab_size);
    return model_->Forward({&row, 1}, *cache_, std::span(*logits).subspan(before), layer_done);
  }

  // K and V of one layer, of all tokens and heads.
  std::vector<float> LayerOfCache(uint32_t layer, size_t tokens) const {
    const KvLayout& layout = cache_->layout();
    std::vector<float> rows;
    for (const bool value : {false, true}) {
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        for (uint32_t token = 0; token < tokens; ++token) {
          const auto* row = reinterpret_cast<const float*>(
              cache_->RowData(blocks_[token / layout.block_tokens], layer, value, head,
                              token % layout.block_tokens));
          rows.insert(rows.end(), row, row + layout.head_dim);
        }
      }
    }
    return rows;
  }

  Model& model() { return *model_; }
  FailingDevice& device(size_t rank) { return *devices_[rank]; }

 private:
  std::vector<std::unique_ptr<FailingDevice>> devices_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvArena> cache_;
  std::vector<BlockId> blocks_;
};

// Largest difference, in units of the largest of theirs.
float RelativeError(const std::vector<float>& ours, const std::vector<float>& theirs) {
  float difference = 0.0f;
  float largest = 0.0f;
  for (size_t i = 0; i < theirs.size(); ++i) {
    if (!std::isfinite(ours[i])) return std::numeric_limits<float>::infinity();
    difference = std::max(difference, std::abs(ours[i] - theirs[i]));
    largest = std::max(largest, std::abs(theirs[i]));
  }
  return difference / largest;
}

struct TestCase {
  std::string model;
  uint32_t ranks;
};

class TensorParallelTest : public testing::TestWithParam<TestCase> {
 protected:
  void SetUp() override {
    const std::string folder = Folder(GetParam().model);
    const nlohmann::json json =
        ParseJsonObject(ReadTextFile(folder + "/expected.json", 1 << 20).value(), folder).value();
    const std::string bytes = ReadTextFile(folder + "/logits.f32", 1 << 24).value();
    prompt_ = json.at("prompt").get<std::vector<TokenId>>();
    greedy_ = json.at("greedy").get<std::vector<TokenId>>();
    logits_.resize(bytes.size() / sizeof(float));
    std::memcpy(logits_.data(), bytes.data(), bytes.size());
  }

  std::vector<TokenId> prompt_;
  std::vector<TokenId> greedy_;
  std::vector<float> logits_;  // [prompt, vocab]
};

TEST_P(TensorParallelTest, LogitsOfThePromptAgree) {
  Runner runner(Folder(GetParam().model), GetParam().ranks);
  std::vector<float> logits;

  // In two chunks: the second one reads what the first one has left in the shards.
  const size_t half = prompt_.size() / 2;
  ASSERT_TRUE(runner.Run(prompt_, 0, half, half, &logits).ok());
  ASSERT_TRUE(runner.Run(prompt_, half, prompt_.size(), prompt_.size() - half, &logits).ok());

  ASSERT_EQ(logits.size(), logits_.size());
  const float error = RelativeError(logits, logits_);
  RecordProperty("relative_error", testing::PrintToString(error));
  EXPECT_LE(error, kToleranceMax);
}

TEST_P(TensorParallelTest, GreedyTokensAreEqual) {
  Runner runner(Folder(GetParam().model), GetParam().ranks);
  std::vector<TokenId> tokens = prompt_;
  size_t done = 0;

  while (tokens.size() < prompt_.size() + greedy_.size()) {
    std::vector<float> logits;
    ASSERT_TRUE(runner.Run(tokens, done, tokens.size(), 1, &logits).ok());
    done = tokens.size();
    tokens.push_back(
        static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  }

  EXPECT_THAT(std::span(tokens).subspan(prompt_.size()), testing::ElementsAreArray(greedy_));
}

TEST_P(TensorParallelTest, EachHeadHasTheKeysAndValuesOfOneRank) {
  Runner one(Folder(GetParam().model), 1);
  Runner many(Folder(GetParam().model), GetParam().ranks);
  std::vector<float> none;

  ASSERT_TRUE(one.Run(prompt_, 0, prompt_.size(), 0, &none).ok());
  ASSERT_TRUE(many.Run(prompt_, 0, prompt_.size(), 0, &none).ok());

  for (uint32_t layer = 0; layer < one.model().config().layers; ++layer) {
    EXPECT_LE(RelativeError(many.LayerOfCache(layer, prompt_.size()),
                            one.LayerOfCache(layer, prompt_.size())),
              kToleranceMax)
        << "layer " << layer;
  }
}

TEST_P(TensorParallelTest, ALayerIsReportedOnceAllRanksHaveIt) {
  Runner runner(Folder(GetParam().model), GetParam().ranks);
  std::vector<float> logits;
  std::vector<uint32_t> layers;
  std::vector<std::vector<float>> seen;

  ASSERT_TRUE(runner
                  .Run(prompt_, 0, prompt_.size(), 1, &logits,
                       [&, caller = std::this_thread::get_id()](uint32_t layer) {
                         EXPECT_EQ(std::this_thread::get_id(), caller);
                         layers.push_back(layer);
                         seen.push_back(runner.LayerOfCache(layer, prompt_.size()));
                       })
                  .ok());

  ASSERT_EQ(layers.size(), runner.model().config().layers);
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    EXPECT_EQ(layers[layer], layer);
    EXPECT_EQ(seen[layer], runner.LayerOfCache(layer, prompt_.size())) << "layer " << layer;
  }
}

std::vector<TestCase> TestCases() {
  std::vector<TestCase> cases;
  for (const char* model :
       {"gemma2",      "gemma2_bf16",    "gemma3",     "gpt2",         "gpt2_bare",
        "gpt2_untied", "llama",          "llama_bf16", "llama_f16",    "llama_sharded",
        "mistral",     "mistral_window", "mixtral",    "mixtral_bf16", "phi3",
        "phi3_long",   "qwen2",          "qwen2_moe",  "qwen2_window", "qwen3",
        "qwen3_moe",   "qwen3_moe_mixed"}) {
    cases.push_back({model, 2});
  }
  for (const char* model : {"gpt2", "gpt2_untied", "phi3"}) cases.push_back({model, 4});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, TensorParallelTest, testing::ValuesIn(TestCases()),
                         [](const auto& test) {
                           return test.param.model + "_tp" + std::to_string(test.param.ranks);
                         });

TEST(ShardTest, SharesOfAVocabularyCoverItOnce) {
  for (const size_t vocab : {1u, 64u, 65u, 128u, 1000u, 50257u, 128256u, 151936u}) {
    for (const uint32_t count : {1u, 2u, 3u, 4u, 8u}) {
      size_t covered = 0;
      size_t largest = 0;
      for (uint32_t rank = 0; rank < count; ++rank) {
        const Shard shard = {rank, count};
        ASSERT_EQ(shard.VocabBegin(vocab), covered) << vocab << " " << rank << "/" << count;
        covered += shard.VocabSize(vocab);
        largest = std::max(largest, shard.VocabSize(vocab));
      }
      EXPECT_EQ(covered, vocab);
      EXPECT_LE(largest, vocab / count + 64) << "nobody has much more than a fair share";
    }
  }
}

class TensorParallelModelTest : public testing::Test {
 protected:
  const std::vector<TokenId> tokens_ = {3, 14, 15, 92, 65, 35};
};

TEST_F(TensorParallelModelTest, TwoRunsHaveEqualBits) {
  std::vector<float> first;
  std::vector<float> second;

  for (std::vector<float>* logits : {&first, &second}) {
    Runner runner(Folder("llama"), 2);
    ASSERT_TRUE(runner.Run(tokens_, 0, tokens_.size(), tokens_.size(), logits).ok());
  }

  EXPECT_EQ(first, second);
}

TEST_F(TensorParallelModelTest, SaysHowManyRanksThereAre) {
  Runner one(Folder("llama_bf16"), 1);
  Runner two(Folder("llama_bf16"), 2);

  EXPECT_EQ(two.model().numerics(), one.model().numerics() + "/tp2");
  EXPECT_EQ(two.model().fingerprint(), one.model().fingerprint());
  EXPECT_EQ(two.model().parameter_count(), one.model().parameter_count());
  EXPECT_EQ(two.model().config().heads, one.model().config().heads);
  EXPECT_EQ(two.model().config().kv_heads, one.model().config().kv_heads);
  EXPECT_EQ(two.model().config().stored_dtype, DType::kBF16);
}

// With an error per weight of 2^-8 and, in int4, 2^-4, in units of a group's largest; in fp8 of
// 2^-4 of itself.
TEST_F(TensorParallelModelTest, QuantizedWeightsStayNearThoseOfOneRank) {
  for (const auto& [weights, tolerance] :
       {std::pair{"int8", 0.05f}, std::pair{"fp8", 0.25f}, std::pair{"int4", 0.5f}}) {
    std::vector<float> one;
    std::vector<float> two;

    ASSERT_TRUE(Runner(Folder("llama"), 1, weights).Run(tokens_, 0, 6, 6, &one).ok());
    ASSERT_TRUE(Runner(Folder("llama"), 2, weights).Run(tokens_, 0, 6, 6, &two).ok());

    EXPECT_LE(RelativeError(two, one), tolerance) << weights;
  }
}

// A vocabulary that three ranks share unevenly, and more logits than are computed at once.
class UnevenVocabularyTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    ASSERT_TRUE(
        WriteTinyModel(folder_,
                       {.hidden = 48, .intermediate = 66, .heads = 6, .kv_heads = 3, .vocab = 300})
            .ok());
    for (TokenId i = 0; i < 100; ++i) tokens_.push_back(i * 7 % 300);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  const std::string folder_ = testing::TempDir() + std::to_string(getpid()) + "uneven_vocabulary";
  std::vector<TokenId> tokens_;
};

TEST_F(UnevenVocabularyTest, LogitsAreThoseOfOneRank) {
  std::vector<float> one;
  std::vector<float> three;

  ASSERT_TRUE(Runner(folder_, 1).Run(tokens_, 0, 100, 100, &one).ok());
  ASSERT_TRUE(Runner(folder_, 3).Run(tokens_, 0, 100, 100, &three).ok());

  EXPECT_LE(RelativeError(three, one), kToleranceMax);
}

TEST_F(UnevenVocabularyTest, WhoFailsBetweenPiecesOfLogitsLeavesNobodyWaiting) {
  Runner runner(folder_, 3);
  std::vector<float> logits;
  runner.device(0).fails = true;  // To take the first piece.

  EXPECT_EQ(runner.Run(tokens_, 0, 100, 100, &logits).code(), absl::StatusCode::kUnavailable);
}

TEST_F(TensorParallelModelTest, WhatDoesNotDivideIsNamed) {
  const std::unique_ptr<Device> device = MakeHostDevice();
  const std::vector<Device*> three(3, device.get());
  const std::vector<Device*> two(2, device.get());

  const absl::Status heads = Model::Load(three, {.directory = Folder("llama")}).status();
  const absl::Status pinned =
      Model::Load(two, {.directory = Folder("llama"), .pin_threads = true}).status();

  EXPECT_EQ(heads.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(heads.message(), "--tp 3 does not divide the model's 2 KV heads");
  EXPECT_EQ(pinned.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(pinned.message()), HasSubstr("--pin_threads"));
}

TEST_F(TensorParallelModelTest, ARefusedCallDoesNoHarm) {
  Runner runner(Folder("llama"), 2);
  std::vector<float> logits;
  const std::vector<TokenId> unknown = {1, 1000};

  EXPECT_EQ(runner.Run(unknown, 0, 2, 1, &logits).code(), absl::StatusCode::kInvalidArgument);

  EXPECT_TRUE(runner.Run(tokens_, 0, tokens_.size(), 1, &logits).ok());
}

TEST_F(TensorParallelModelTest, ARankThatFailsEndsTheCallOfAll) {
  for (const size_t rank : {0, 1}) {
    Runner runner(Folder("qwen2_moe"), 2);
    std::vector<float> logits;
    ASSERT_TRUE(runner.Run(tokens_, 0, 3, 0, &logits).ok());
    runner.device(rank).fails = true;

    int layers = 0;
    const absl::Status status =
        runner.Run(tokens_, 3, 6, 1, &logits, [&](uint32_t /*layer*/) { ++layers; });
    runner.device(rank).fails = false;

    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << "rank " << rank;
    EXPECT_LE(layers, 1);
    EXPECT_EQ(runner.Run(tokens_, 3, 6, 1, &logits), status) << "and it stays so";
  }
}

}  // namespace
}  // namespace baton
