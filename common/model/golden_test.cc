// Goal: our forward pass computes what Hugging Face transformers computes, and the same bits
// however a sequence is cut into chunks, batches, blocks and threads. Method: tiny random models
// with stored logits and greedy tokens; tests/goldens/models/make_goldens.py made them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "common/model/decoder.h"
#include "common/model/json_file.h"
#include "common/model/model.h"

namespace baton {
namespace {

constexpr float kToleranceMax = 1e-4f;
constexpr uint32_t kTokensMax = 128;  // The context of every golden model.

struct Expected {
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;
  std::vector<float> logits;  // [prompt, vocab]
};

std::string Folder(const std::string& name) { return "tests/goldens/models/" + name; }

Expected ReadExpected(const std::string& name) {
  const std::string text = ReadTextFile(Folder(name) + "/expected.json", 1 << 20).value();
  const nlohmann::json json = ParseJsonObject(text, name).value();
  const std::string bytes = ReadTextFile(Folder(name) + "/logits.f32", 1 << 24).value();
  Expected expected;
  expected.prompt = json.at("prompt").get<std::vector<TokenId>>();
  expected.greedy = json.at("greedy").get<std::vector<TokenId>>();
  expected.logits.resize(bytes.size() / sizeof(float));
  std::memcpy(expected.logits.data(), bytes.data(), bytes.size());
  return expected;
}

struct RunOptions {
  uint32_t threads = 1;
  CpuIsa isa = BestCpuIsa();
  uint32_t block_tokens = 16;
  DType kv_dtype = DType::kF32;
  WeightOptions weights = {};
};

// A model with a cache, and sequences in it whose blocks are scattered over the cache.
class Runner {
 public:
  Runner(const std::string& name, const RunOptions& options) : device_(MakeHostDevice()) {
    const ModelConfig config = ModelConfig::Load(Folder(name)).value();
    auto context =
        KernelContext::Create({.threads = options.threads, .cpu_isa = options.isa}).value();
    auto weights =
        ModelWeights::Load(*device_, *context, config, Folder(name), options.weights).value();
    model_ = Decoder::Create(*device_, config, std::move(weights), std::move(context),
                             2 * kTokensMax, "fingerprint")
                 .value();
    const KvLayout layout = {.layers = config.layers,
                             .kv_heads = config.kv_heads,
                             .head_dim = config.head_dim,
                             .block_tokens = options.block_tokens,
                             .dtype = options.kv_dtype};
    const uint32_t blocks = layout.BlocksFor(kTokensMax);
    cache_ = KvArena::Create(*device_, layout, 2 * blocks).value();
    std::vector<BlockId> all;
    for (uint32_t block = 0; block < 2 * blocks; ++block) all.push_back(BlockId{block});
    std::shuffle(all.begin(), all.end(), std::mt19937(7));
    first_blocks_.assign(all.begin(), all.begin() + blocks);
    second_blocks_.assign(all.begin() + blocks, all.end());
  }

  // Gives up the first sequence's blocks that the token at `position` does not see.
  void Forget(uint32_t position) {
    const KvLayout& layout = cache_->layout();
    const uint32_t count = model_->config().FirstVisible(position) / layout.block_tokens;
    for (; forgotten_ < count; ++forgotten_) {
      std::byte* const data = cache_->BlockData(first_blocks_[forgotten_]);
      std::fill(data, data + layout.block_bytes(), std::byte{0xff});  // NaN
      first_blocks_[forgotten_] = kNoBlock;
    }
  }
  uint32_t forgotten() const { return forgotten_; }

  uint32_t vocab() const { return model_->config().vocab_size; }

  // Runs tokens [begin, end) of the first sequence and appends their logits.
  void Run(std::span<const TokenId> tokens, size_t begin, size_t end, std::vector<float>* logits) {
    const BatchRow row = {.tokens = tokens.subspan(begin, end - begin),
                          .start = static_cast<uint32_t>(begin),
                          .blocks = first_blocks_,
                          .logit_count = static_cast<uint32_t>(end - begin)};
    Forward({&row, 1}, logits);
  }
  // As Run, together with tokens [other_begin, other_end) of a second sequence, which come first.
  void RunBeside(std::span<const TokenId> tokens, size_t begin, size_t end,
                 std::span<const TokenId> other, size_t other_begin, size_t other_end,
                 std::vector<float>* logits) {
    const BatchRow rows[2] = {{.tokens = other.subspan(other_begin, other_end - other_begin),
                               .start = static_cast<uint32_t>(other_begin),
                               .blocks = second_blocks_,
                               .logit_count = 0},
                              {.tokens = tokens.subspan(begin, end - begin),
                               .start = static_cast<uint32_t>(begin),
                               .blocks = first_blocks_,
                               .logit_count = static_cast<uint32_t>(end - begin)}};
    Forward(rows, logits);
  }

 private:
  void Forward(std::span<const BatchRow> rows, std::vector<float>* logits) {
    const size_t before = logits->size();
    size_t count = 0;
    for (const BatchRow& row : rows) count += row.logit_count;
    logits->resize(before + count * vocab());
    const absl::Status status =
        model_->Forward(rows, *cache_, std::span(*logits).subspan(before), nullptr);
    ASSERT_TRUE(status.ok()) << status;
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Decoder> model_;
  std::unique_ptr<KvArena> cache_;
  std::vector<BlockId> first_blocks_;
  std::vector<BlockId> second_blocks_;
  uint32_t forgotten_ = 0;  // Blocks of the first sequence.
};

// Largest difference, in units of the largest logit.
float RelativeError(const std::vector<float>& ours, const std::vector<float>& theirs) {
  float difference = 0.0f;
  float largest = 0.0f;
  for (size_t i = 0; i < theirs.size(); ++i) {
    difference = std::max(difference, std::abs(ours[i] - theirs[i]));
    largest = std::max(largest, std::abs(theirs[i]));
  }
  return difference / largest;
}

// ==, but of bits: a NaN would not hide.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  GoldenTest() : expected_(ReadExpected(GetParam())), tokens_(expected_.prompt) {
    tokens_.insert(tokens_.end(), expected_.greedy.begin(), expected_.greedy.end());
  }

  // Logits of all tokens from one pass.
  std::vector<float> OnePass(const RunOptions& options) {
    std::vector<float> logits;
    Runner(GetParam(), options).Run(tokens_, 0, tokens_.size(), &logits);
    return logits;
  }

  // Logits of all tokens from passes of random lengths, most of them beside another sequence.
  std::vector<float> InChunks(uint32_t seed, const WeightOptions& weights) {
    std::mt19937 random(seed);
    const uint32_t block_sizes[] = {1, 4, 16, 32};
    const std::vector<TokenId> other(tokens_.rbegin(), tokens_.rend());
    Runner runner(
        GetParam(),
        {.threads = 1 + seed % 4, .block_tokens = block_sizes[random() % 4], .weights = weights});
    std::vector<float> logits;
    size_t other_begin = 0;
    for (size_t begin = 0; begin < tokens_.size();) {
      const size_t end = std::min(tokens_.size(), begin + 1 + random() % 40);
      const size_t other_end = std::min(other.size(), other_begin + random() % 30);
      if (other_end > other_begin) {
        runner.RunBeside(tokens_, begin, end, other, other_begin, other_end, &logits);
      } else {
        runner.Run(tokens_, begin, end, &logits);
      }
      begin = end;
      other_begin = other_end;
    }
    return logits;
  }

  const Expected expected_;
  std::vector<TokenId> tokens_;  // The prompt and its continuation.
};

TEST_P(GoldenTest, LogitsOfThePromptAgree) {
  std::vector<float> logits;

  Runner(GetParam(), {}).Run(expected_.prompt, 0, expected_.prompt.size(), &logits);

  ASSERT_EQ(logits.size(), expected_.logits.size());
  const float error = RelativeError(logits, expected_.logits);
  RecordProperty("relative_error", testing::PrintToString(error));
  EXPECT_LE(error, kToleranceMax);
}

TEST_P(GoldenTest, GreedyTokensAreEqual) {
  Runner runner(GetParam(), {});
  std::vector<TokenId> tokens = expected_.prompt;
  size_t done = 0;

  for (size_t i = 0; i < expected_.greedy.size(); ++i) {
    std::vector<float> logits;
    runner.Run(tokens, done, tokens.size(), &logits);
    done = tokens.size();
    const auto last = logits.end() - runner.vocab();
    tokens.push_back(static_cast<TokenId>(std::max_element(last, logits.end()) - last));
  }

  EXPECT_THAT(std::span(tokens).subspan(expected_.prompt.size()),
              testing::ElementsAreArray(expected_.greedy));
}

TEST_P(GoldenTest, BlockSizeThreadsAndIsaDoNotChangeBits) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<float> reference = OnePass({.kv_dtype = kv_dtype});

    for (uint32_t block_tokens : {1u, 4u, 16u, 32u}) {
      EXPECT_TRUE(
          SameBits(OnePass({.block_tokens = block_tokens, .kv_dtype = kv_dtype}), reference))
          << "block_tokens " << block_tokens;
    }
    for (uint32_t threads : {2u, 3u, 4u}) {
      EXPECT_TRUE(SameBits(OnePass({.threads = threads, .kv_dtype = kv_dtype}), reference))
          << "threads " << threads;
    }
    for (CpuIsa isa : {CpuIsa::kBaseline, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
      if (!KernelContext::Create({.cpu_isa = isa}).ok()) continue;  // Not on this machine.
      EXPECT_TRUE(SameBits(OnePass({.isa = isa, .kv_dtype = kv_dtype}), reference))
          << CpuIsaName(isa);
    }
  }
}

TEST_P(GoldenTest, DecodingOneByOneEqualsOnePass) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16}) {
    Runner runner(GetParam(), {.kv_dtype = kv_dtype});
    std::vector<float> logits;

    for (size_t i = 0; i < tokens_.size(); ++i) runner.Run(tokens_, i, i + 1, &logits);

    EXPECT_TRUE(SameBits(logits, OnePass({.kv_dtype = kv_dtype})));
  }
}

TEST_P(GoldenTest, RandomChunksBesideAnotherSequenceEqualOnePass) {
  const std::vector<float> reference = OnePass({});

  for (uint32_t seed = 0; seed < 8; ++seed) {
    EXPECT_TRUE(SameBits(InChunks(seed, {}), reference)) << "seed " << seed;
  }
}

TEST_P(GoldenTest, EveryFormOfWeightsGivesEqualBitsInChunks) {
  const WeightOptions forms[] = {{.form = WeightForm::kF32},
                                 {.form = WeightForm::kBF16},
                                 {.form = WeightForm::kF16},
                                 {.form = WeightForm::kInt8, .activation_bytes = 1},
                                 {.form = WeightForm::kInt8, .activation_bytes = 2},
                                 {.form = WeightForm::kInt4, .activation_bytes = 1},
                                 {.form = WeightForm::kInt4, .activation_bytes = 2},
                                 {.form = WeightForm::kFp8}};
  for (const WeightOptions& form : forms) {
    const std::vector<float> reference = OnePass({.weights = form});

    for (uint32_t seed = 10; seed < 12; ++seed) {
      EXPECT_TRUE(SameBits(InChunks(seed, form), reference))
          << WeightFormName(*form.form) << " a" << 8 * form.activation_bytes << " seed " << seed;
    }
  }
}

// The error of a BF16 cache is its rounding: 2^-9 per element, not a mistake in the layout.
TEST_P(GoldenTest, Bf16CacheStaysNearTheReference) {
  std::vector<float> logits;

  Runner(GetParam(), {.kv_dtype = DType::kBF16})
      .Run(expected_.prompt, 0, expected_.prompt.size(), &logits);

  EXPECT_LE(RelativeError(logits, expected_.logits), 0.1f);
}

// Of models that have a window in every layer.
class WindowTest : public GoldenTest {};

TEST_P(WindowTest, BlocksBehindTheWindowAreNotNeeded) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16, DType::kI8, DType::kFp8}) {
    for (uint32_t seed = 0; seed < 4; ++seed) {
      std::mt19937 random(seed);
      const uint32_t chunk_max = seed % 2 == 0 ? 1 : 12;
      Runner runner(GetParam(), {.threads = 1 + seed % 2, .block_tokens = 4, .kv_dtype = kv_dtype});
      std::vector<float> logits;
      for (size_t begin = 0; begin < tokens_.size();) {
        const size_t end = std::min(tokens_.size(), begin + 1 + random() % chunk_max);
        runner.Forget(static_cast<uint32_t>(begin));
        runner.Run(tokens_, begin, end, &logits);
        begin = end;
      }

      EXPECT_TRUE(SameBits(logits, OnePass({.kv_dtype = kv_dtype}))) << "seed " << seed;
      EXPECT_GT(runner.forgotten(), 10u);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, WindowTest, testing::Values("mistral_window", "phi3"),
                         [](const auto& model) { return std::string(model.param); });

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         testing::Values("gemma", "gemma2", "gemma2_bf16", "gemma3",
                                         "gemma3_linear", "gpt2", "gpt2_bare", "gpt2_untied",
                                         "llama", "llama_tied", "llama_llama3", "llama_linear",
                                         "llama_bf16", "llama_f16", "llama_sharded", "mistral",
                                         "mistral_window", "mixtral", "mixtral_bf16", "phi3",
                                         "phi3_long", "phi3_short", "qwen2", "qwen2_moe",
                                         "qwen2_window", "qwen2_yarn", "qwen3", "qwen3_moe",
                                         "qwen3_moe_mixed", "qwen3_window", "qwen3_yarn"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
}  // namespace baton
