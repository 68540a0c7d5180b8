// Goal: a model is loaded as its options say, or refused with an error that names the fault;
// Forward refuses calls that would read or write outside. What it computes is in golden_test.cc.
#include "common/model/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/model/json_file.h"
#include "common/model/testing/tiny_model.h"

namespace baton {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Floats = std::vector<float>;

class DecoderTest : public testing::Test {
 protected:
  DecoderTest()
      : directory_(testing::TempDir() + std::to_string(getpid()) + "decoder_test_" +
                   testing::UnitTest::GetInstance()->current_test_info()->name()),
        device_(MakeHostDevice()) {
    std::filesystem::create_directories(directory_);
  }
  ~DecoderTest() override { std::filesystem::remove_all(directory_); }

  void WriteModel(const TinyModelOptions& options = {}) {
    ASSERT_TRUE(WriteTinyModel(directory_, options).ok());
  }
  absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& weights = "") {
    return Model::Load(*device_,
                       {.directory = directory_, .weights = weights, .batch_tokens_max = 64});
  }
  std::unique_ptr<KvArena> MakeCache(const Model& model, uint32_t blocks = 4) {
    return KvArena::Create(*device_,
                           {.layers = model.config().layers,
                            .kv_heads = model.config().kv_heads,
                            .head_dim = model.config().head_dim},
                           blocks)
        .value();
  }
  // The header of model.safetensors, changed by `change`; the data stay.
  void ChangeHeader(const std::function<void(nlohmann::ordered_json&)>& change) {
    const std::string path = directory_ + "/model.safetensors";
    const std::string file = ReadTextFile(path, 1 << 24).value();
    uint64_t size = 0;
    std::memcpy(&size, file.data(), sizeof(size));
    auto json = nlohmann::ordered_json::parse(file.substr(8, size));
    change(json);
    const std::string header = json.dump();
    size = header.size();
    std::ofstream(path, std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&size), sizeof(size)) << header
        << file.substr(file.size() - DataBytes(json));
  }
  static uint64_t DataBytes(const nlohmann::ordered_json& header) {
    uint64_t end = 0;
    for (const auto& [name, entry] : header.items()) {
      end = std::max(end, entry["data_offsets"][1].get<uint64_t>());
    }
    return end;
  }
  void ExpectLoadError(const std::string& first, const std::string& second) {
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(first), HasSubstr(second)));
  }

  const std::string directory_;
  const std::unique_ptr<Device> device_;
};

TEST_F(DecoderTest, LoadsWeightsAsStoredOrConverted) {
  WriteModel({.dtype = DType::kBF16});

  EXPECT_EQ((*Load())->numerics(), "bf16/cpu-2");
  EXPECT_EQ((*Load("f32"))->numerics(), "f32/cpu-2");
  EXPECT_EQ((*Load("f16"))->numerics(), "f16/cpu-2");
  EXPECT_EQ((*Load("int8"))->numerics(), "int8a16/cpu-2");
  EXPECT_EQ((*Load("int4"))->numerics(), "int4a16+int8a16/cpu-2");
  EXPECT_EQ((*Load("f16"))->config().stored_dtype, DType::kBF16);
  EXPECT_EQ(Load("int3").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Load("q4").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DecoderTest, ConversionThatLosesNothingKeepsBits) {
  WriteModel({.dtype = DType::kBF16});
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5};
  const std::vector<BlockId> blocks = {BlockId{2}};
  const BatchRow row = {.tokens = tokens, .start = 0, .blocks = blocks, .logit_count = 5};
  Floats as_stored(5 * 259);
  Floats converted(5 * 259);

  const std::unique_ptr<Model> first = *Load();
  const std::unique_ptr<Model> second = *Load("f32");
  ASSERT_TRUE(first->Forward({&row, 1}, *MakeCache(*first), as_stored, nullptr).ok());
  ASSERT_TRUE(second->Forward({&row, 1}, *MakeCache(*second), converted, nullptr).ok());

  EXPECT_EQ(as_stored, converted);
}

// sqrt(48) = 6.928203, which is 6.9375 with eight bits.
TEST_F(DecoderTest, GemmaScalesEmbeddingsByARoundedRoot) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    WriteModel({.architecture = "Gemma2ForCausalLM", .hidden = 48, .dtype = dtype});
    auto context = KernelContext::Create({}).value();
    const ModelConfig config = ModelConfig::Load(directory_).value();

    const auto weights = ModelWeights::Load(*device_, *context, config, directory_, {}).value();

    EXPECT_EQ(weights->embedding_scale(), dtype == DType::kF32 ? std::sqrt(48.0f) : 6.9375f);
  }
}

TEST_F(DecoderTest, CountsParametersOnce) {
  WriteModel({.layers = 1,
              .hidden = 8,
              .intermediate = 4,
              .heads = 2,
              .kv_heads = 1,
              .vocab = 300,
              .tied_embeddings = true});

  // Embedding; q and o, k and v; three of the network; two norms; the last norm.
  EXPECT_EQ((*Load())->parameter_count(), 300u * 8 + 2 * 64 + 2 * 32 + 3 * 32 + 16 + 8);
}

TEST_F(DecoderTest, CountsParametersOfAllExperts) {
  WriteModel({.architecture = "Qwen2MoeForCausalLM",
              .layers = 1,
              .hidden = 8,
              .intermediate = 4,
              .heads = 2,
              .kv_heads = 1,
              .vocab = 300,
              .tied_embeddings = true,
              .experts = 3,
              .expert_intermediate = 5});

  // As above, with biases; the router; three experts; the shared one and its gate.
  EXPECT_EQ((*Load())->parameter_count(),
            300u * 8 + 2 * 64 + 2 * 32 + (8 + 4 + 4) + 16 + 8 + 3 * 8 + 3 * 3 * 40 + 3 * 32 + 8);
}

TEST_F(DecoderTest, CountsParametersOfGpt2) {
  WriteModel({.architecture = "GPT2LMHeadModel",
              .layers = 1,
              .hidden = 8,
              .intermediate = 4,
              .heads = 2,
              .vocab = 300,
              .context_tokens = 50,
              .tied_embeddings = true});

  // Both tables; attention and network with their biases; two norms and the last one.
  EXPECT_EQ((*Load())->parameter_count(),
            300u * 8 + 50 * 8 + (8 * 24 + 24) + (64 + 8) + (32 + 4) + (32 + 8) + 3 * 2 * 8);
}

TEST_F(DecoderTest, NamesTheTensorOfGpt2ThatHasAnotherShape) {
  WriteModel({.architecture = "GPT2LMHeadModel"});
  ChangeHeader([](nlohmann::ordered_json& header) {
    header["transformer.h.0.attn.c_attn.weight"]["shape"] = {96, 32};
  });

  ExpectLoadError("'transformer.h.0.attn.c_attn.weight'", "[96, 32]");
}

TEST_F(DecoderTest, RoutersKeepTheirStoredForm) {
  WriteModel({.architecture = "Qwen3MoeForCausalLM", .dtype = DType::kBF16});

  EXPECT_EQ((*Load())->numerics(), "bf16/cpu-2");
  EXPECT_EQ((*Load("int8"))->numerics(), "bf16+int8a16/cpu-2");
  EXPECT_EQ((*Load("int4"))->numerics(), "bf16+int4a16+int8a16/cpu-2");
}

TEST_F(DecoderTest, NamesTheExpertThatIsMissing) {
  WriteModel({.architecture = "MixtralForCausalLM"});
  ChangeHeader([](nlohmann::ordered_json& header) {
    header["renamed"] = header["model.layers.1.block_sparse_moe.experts.3.w2.weight"];
    header.erase("model.layers.1.block_sparse_moe.experts.3.w2.weight");
  });

  ExpectLoadError("'model.layers.1.block_sparse_moe.experts.3.w2.weight' is missing",
                  "model.safetensors");
}

TEST_F(DecoderTest, FingerprintTellsModelsApart) {
  WriteModel({.seed = 1});
  const std::string first = (*Load())->fingerprint();
  EXPECT_EQ(first.size(), 32u);
  EXPECT_EQ((*Load("bf16"))->fingerprint(), first);

  WriteModel({.seed = 2});
  EXPECT_NE((*Load())->fingerprint(), first);
  WriteModel({.seed = 1});
  EXPECT_EQ((*Load())->fingerprint(), first);
  std::ofstream(directory_ + "/tokenizer.json", std::ios::app) << " ";
  EXPECT_NE((*Load())->fingerprint(), first);
  std::filesystem::remove(directory_ + "/tokenizer.json");
  EXPECT_NE((*Load())->fingerprint(), first);
}

TEST_F(DecoderTest, NamesTheTensorThatIsMissing) {
  WriteModel();
  ChangeHeader([](nlohmann::ordered_json& header) {
    header["renamed"] = header["model.layers.1.mlp.up_proj.weight"];
    header.erase("model.layers.1.mlp.up_proj.weight");
  });

  ExpectLoadError("'model.layers.1.mlp.up_proj.weight' is missing", "model.safetensors");
}

TEST_F(DecoderTest, NamesTheTensorOfAnotherShape) {
  WriteModel();
  ChangeHeader([](nlohmann::ordered_json& header) {
    header["model.layers.0.self_attn.k_proj.weight"]["shape"] = {32, 16};
  });

  ExpectLoadError("'model.layers.0.self_attn.k_proj.weight'", "[32, 16]");
}

TEST_F(DecoderTest, NamesTheTensorOfAnotherType) {
  WriteModel();
  ChangeHeader(
      [](nlohmann::ordered_json& header) { header["model.norm.weight"]["dtype"] = "I32"; });

  ExpectLoadError("'model.norm.weight'", "I32");
}

TEST_F(DecoderTest, NamesTheTensorThatAFileCutsOff) {
  WriteModel();
  const std::string path = directory_ + "/model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 100);

  ExpectLoadError("'lm_head.weight'", "truncated");
}

TEST_F(DecoderTest, NamesTheTensorThatDoesNotFitIntoHalf) {
  WriteModel({.deviation = 1e6f});

  const absl::Status status = Load("f16").status();

  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("lm_head"), HasSubstr("f16")));
}

TEST_F(DecoderTest, ReportsEachLayerOnceWhenItsKvIsThere) {
  WriteModel({.layers = 3});
  const std::unique_ptr<Model> model = *Load();
  const std::unique_ptr<KvArena> cache = MakeCache(*model);
  const std::vector<TokenId> tokens = {1, 2, 3};
  const std::vector<BlockId> blocks = {BlockId{1}};
  const BatchRow row = {.tokens = tokens, .start = 0, .blocks = blocks, .logit_count = 0};
  std::vector<uint32_t> layers;

  const absl::Status status = model->Forward({&row, 1}, *cache, {}, [&](uint32_t layer) {
    layers.push_back(layer);
    // The last value row of the chunk; blocks are zero until written.
    float value = 0.0f;
    std::memcpy(&value, cache->RowData(BlockId{1}, layer, true, 1, 2), sizeof(value));
    EXPECT_NE(value, 0.0f);
  });

  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(layers, testing::ElementsAre(0, 1, 2));
}

TEST_F(DecoderTest, SomeLogitsEqualThoseOfAll) {
  WriteModel();
  const std::unique_ptr<Model> model = *Load();
  const std::unique_ptr<KvArena> cache = MakeCache(*model);
  const std::vector<TokenId> first = {1, 2, 3, 4};
  const std::vector<TokenId> second = {5, 6};
  const std::vector<BlockId> first_blocks = {BlockId{0}};
  const std::vector<BlockId> second_blocks = {BlockId{3}};
  const BatchRow all[] = {{first, 0, first_blocks, 4}, {second, 0, second_blocks, 2}};
  const BatchRow some[] = {{first, 0, first_blocks, 2}, {second, 0, second_blocks, 1}};
  Floats all_logits(6 * 259);
  Floats some_logits(3 * 259);

  ASSERT_TRUE(model->Forward(all, *cache, all_logits, nullptr).ok());
  ASSERT_TRUE(model->Forward(some, *cache, some_logits, nullptr).ok());

  Floats expected(all_logits.begin() + 2 * 259, all_logits.begin() + 4 * 259);
  expected.insert(expected.end(), all_logits.begin() + 5 * 259, all_logits.end());
  EXPECT_EQ(some_logits, expected);
}

TEST_F(DecoderTest, ForwardRefusesBadCalls) {
  WriteModel({.context_tokens = 40});
  const std::unique_ptr<Model> model = *Load();
  const std::unique_ptr<KvArena> cache = MakeCache(*model);
  const std::vector<TokenId> tokens = {1, 2};
  const std::vector<TokenId> unknown = {1, 259};
  const std::vector<TokenId> negative = {-1};
  const std::vector<TokenId> many(65, 1);
  const std::vector<BlockId> blocks = {BlockId{0}, BlockId{1}, BlockId{2}};
  const std::vector<BlockId> outside = {BlockId{4}};
  const auto refused = [&](const BatchRow& row, size_t logits, const std::string& reason) {
    Floats out(logits * 259);
    const absl::Status status = model->Forward({&row, 1}, *cache, out, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << reason;
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
  };

  refused({{}, 0, blocks, 0}, 0, "no tokens");
  refused({tokens, 0, blocks, 3}, 3, "more logits");
  refused({tokens, 0, blocks, 1}, 2, "room for");
  refused({tokens, 39, blocks, 1}, 1, "context");
  refused({tokens, 15, std::span(blocks).first(1), 1}, 1, "cover");
  refused({tokens, 0, outside, 1}, 1, "no block 4");
  refused({unknown, 0, blocks, 1}, 1, "no token 259");
  refused({negative, 0, blocks, 1}, 1, "no token -1");
  const BatchRow rows[] = {{tokens, 0, blocks, 0}};
  const auto other = KvArena::Create(*device_, {.layers = 9, .kv_heads = 2, .head_dim = 8}, 1);
  EXPECT_FALSE(model->Forward(rows, **other, {}, nullptr).ok());
}

TEST_F(DecoderTest, BlocksThatAreSeenMustBeThere) {
  WriteModel({.architecture = "MistralForCausalLM", .sliding_window = 20});
  const std::unique_ptr<Model> model = *Load();
  const std::unique_ptr<KvArena> cache = MakeCache(*model);
  const std::vector<TokenId> tokens = {1};
  const std::vector<BlockId> blocks = {kNoBlock, BlockId{1}, BlockId{2}};
  const auto run = [&](uint32_t start) {
    const BatchRow row = {tokens, start, blocks, 0};
    return model->Forward({&row, 1}, *cache, {}, nullptr);
  };

  EXPECT_TRUE(run(35).ok());   // Sees [16, 35].
  EXPECT_FALSE(run(34).ok());  // Sees [15, 34].
}

TEST_F(DecoderTest, TooManyTokensAreRefused) {
  WriteModel();
  const std::unique_ptr<Model> model = *Load();
  const std::unique_ptr<KvArena> cache = MakeCache(*model, 5);
  const std::vector<TokenId> tokens(65, 1);
  const std::vector<BlockId> blocks = {BlockId{0}, BlockId{1}, BlockId{2}, BlockId{3}, BlockId{4}};
  const BatchRow row = {tokens, 0, blocks, 0};

  const absl::Status status = model->Forward({&row, 1}, *cache, {}, nullptr);

  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 64"));
}

TEST_F(DecoderTest, EmptyBatchDoesNothing) {
  WriteModel();
  const std::unique_ptr<Model> model = *Load();

  EXPECT_TRUE(model->Forward({}, *MakeCache(*model), {}, nullptr).ok());
}

TEST(TinyModelTest, EqualSeedsWriteEqualBytesForEveryFamily) {
  const std::string directory = testing::TempDir() + std::to_string(getpid()) + "tiny_model_test";
  std::filesystem::create_directories(directory);
  for (const char* architecture :
       {"LlamaForCausalLM", "MistralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
        "Gemma3ForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM", "Phi3ForCausalLM",
        "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}) {
    for (DType dtype : {DType::kF32, DType::kF16}) {
      const TinyModelOptions options = {.architecture = architecture, .dtype = dtype};
      ASSERT_TRUE(WriteTinyModel(directory, options).ok());
      const std::string first = ReadTextFile(directory + "/model.safetensors", 1 << 24).value();
      ASSERT_TRUE(WriteTinyModel(directory, options).ok());
      EXPECT_EQ(ReadTextFile(directory + "/model.safetensors", 1 << 24).value(), first);
      const std::unique_ptr<Device> device = MakeHostDevice();
      const auto model = Model::Load(*device, {.directory = directory});
      EXPECT_TRUE(model.ok()) << model.status();
    }
  }
  EXPECT_FALSE(WriteTinyModel(directory, {.vocab = 100}).ok());
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace baton
