// Goal: every supported config.json is understood in both spellings, and every unsupported one is
// refused with an error that names the option. Method: one good file, changed key by key.
#include "common/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace baton {
namespace {

using Json = nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class ModelConfigTest : public testing::Test {
 protected:
  ModelConfigTest()
      : directory_(testing::TempDir() + std::to_string(getpid()) + "model_config_test_" +
                   TestName()) {
    std::filesystem::create_directories(directory_);
  }
  ~ModelConfigTest() override { std::filesystem::remove_all(directory_); }

  static std::string TestName() {
    return testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  static Json Llama() {
    return {{"architectures", {"LlamaForCausalLM"}},
            {"hidden_act", "silu"},
            {"hidden_size", 64},
            {"intermediate_size", 128},
            {"max_position_embeddings", 4096},
            {"num_attention_heads", 8},
            {"num_key_value_heads", 2},
            {"num_hidden_layers", 3},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 500000.0},
            {"tie_word_embeddings", false},
            {"torch_dtype", "bfloat16"},
            {"vocab_size", 1000}};
  }

  static Json QwenMoe() {
    Json config = Llama();
    config["architectures"] = {"Qwen3MoeForCausalLM"};
    config["num_experts"] = 16;
    config["num_experts_per_tok"] = 4;
    config["moe_intermediate_size"] = 96;
    return config;
  }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name) << text;
  }
  absl::StatusOr<ModelConfig> Load(const Json& config) {
    Write("config.json", config.dump());
    return ModelConfig::Load(directory_);
  }
  // Llama with one key changed; null removes it.
  absl::StatusOr<ModelConfig> LoadWith(const std::string& key, const Json& value) {
    Json config = Llama();
    config[key] = value;
    return Load(config);
  }
  // By layer.
  std::vector<uint32_t> Windows(const Json& config) {
    const absl::StatusOr<ModelConfig> model = Load(config);
    EXPECT_TRUE(model.ok()) << model.status();
    std::vector<uint32_t> windows;
    if (!model.ok()) return windows;
    for (const LayerAttention& layer : model->layer_attention) windows.push_back(layer.window);
    return windows;
  }
  void ExpectRefused(const std::string& key, const Json& value, const std::string& word = "") {
    const absl::Status status = LoadWith(key, value).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << " " << value;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(key), HasSubstr("config.json"), HasSubstr(word)));
  }

  const std::string directory_;
};

TEST_F(ModelConfigTest, ReadsLlama) {
  const absl::StatusOr<ModelConfig> config = Load(Llama());

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->vocab_size, 1000u);
  EXPECT_EQ(config->hidden_size, 64u);
  EXPECT_EQ(config->intermediate_size, 128u);
  EXPECT_EQ(config->layers, 3u);
  EXPECT_EQ(config->heads, 8u);
  EXPECT_EQ(config->kv_heads, 2u);
  EXPECT_EQ(config->head_dim, 8u);
  EXPECT_EQ(config->context_tokens, 4096u);
  EXPECT_FLOAT_EQ(config->norm_epsilon, 1e-5f);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_FALSE(config->qkv_bias);
  EXPECT_FALSE(config->qk_norm);
  EXPECT_EQ(config->rope.theta, 500000.0f);
  EXPECT_EQ(config->rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(config->stored_dtype, DType::kBF16);
}

TEST_F(ModelConfigTest, FamiliesDiffer) {
  EXPECT_TRUE(LoadWith("architectures", {"Qwen2ForCausalLM"})->qkv_bias);
  EXPECT_TRUE(LoadWith("architectures", {"Qwen3ForCausalLM"})->qk_norm);
  EXPECT_EQ(LoadWith("architectures", {"Qwen3ForCausalLM"})->head_dim, 128u);
  EXPECT_TRUE(LoadWith("architectures", {"MistralForCausalLM"}).ok());
}

TEST_F(ModelConfigTest, ReadsMixtral) {
  Json file = Llama();
  file["architectures"] = {"MixtralForCausalLM"};
  file["num_local_experts"] = 8;
  file["num_experts_per_tok"] = 2;
  file.erase("rope_theta");
  file.erase("rms_norm_eps");

  const absl::StatusOr<ModelConfig> config = Load(file);

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->experts.count, 8u);
  EXPECT_EQ(config->experts.per_token, 2u);
  EXPECT_EQ(config->experts.intermediate_size, 128u);
  EXPECT_EQ(config->experts.shared_intermediate_size, 0u);
  EXPECT_TRUE(config->experts.normalize);
  EXPECT_TRUE(config->HasExperts(0));
  EXPECT_EQ(config->rope.theta, 1e6f);
  EXPECT_FLOAT_EQ(config->norm_epsilon, 1e-5f);
}

TEST_F(ModelConfigTest, ReadsGpt2) {
  // As the first file of GPT-2 was, with what does not matter left out.
  Json file = {{"activation_function", "gelu_new"},
               {"architectures", {"GPT2LMHeadModel"}},
               {"eos_token_id", 50256},
               {"layer_norm_epsilon", 1e-05},
               {"n_ctx", 1024},
               {"n_embd", 768},
               {"n_head", 12},
               {"n_layer", 2},
               {"n_positions", 1024},
               {"vocab_size", 50257}};

  absl::StatusOr<ModelConfig> config = Load(file);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->hidden_size, 768u);
  EXPECT_EQ(config->intermediate_size, 3072u);
  EXPECT_EQ(config->layers, 2u);
  EXPECT_EQ(config->kv_heads, 12u);
  EXPECT_EQ(config->head_dim, 64u);
  EXPECT_EQ(config->context_tokens, 1024u);
  EXPECT_FLOAT_EQ(config->norm_epsilon, 1e-5f);
  EXPECT_FLOAT_EQ(config->attention_scale, 0.125f);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_TRUE(config->learned_positions);
  EXPECT_FALSE(config->gated_network);
  EXPECT_EQ(config->norm_kind, NormKind::kLayer);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(50256));

  file["n_inner"] = 100;
  EXPECT_EQ(Load(file)->intermediate_size, 100u);

  const auto refused = [&](const std::string& key, const Json& value) {
    Json changed = file;
    changed[key] = value;
    const absl::Status status = Load(changed).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << " " << value;
    EXPECT_THAT(std::string(status.message()), HasSubstr(key));
  };
  refused("activation_function", "relu");
  refused("scale_attn_weights", false);
  refused("scale_attn_by_inverse_layer_idx", true);
  refused("add_cross_attention", true);
  refused("quantization_config", {{"quant_method", "gptq"}});
  refused("n_embd", nullptr);
  refused("n_head", 7);
  refused("n_head", 768);
  refused("n_positions", 0);
}

TEST_F(ModelConfigTest, ReadsQwenMoe) {
  Json file = QwenMoe();

  absl::StatusOr<ModelConfig> config = Load(file);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->qk_norm);
  EXPECT_EQ(config->head_dim, 8u);
  EXPECT_EQ(config->experts.count, 16u);
  EXPECT_EQ(config->experts.per_token, 4u);
  EXPECT_EQ(config->experts.intermediate_size, 96u);
  EXPECT_EQ(config->intermediate_size, 128u);
  EXPECT_FALSE(config->experts.normalize);
  for (uint32_t layer = 0; layer < 3; ++layer) EXPECT_TRUE(config->HasExperts(layer));

  file["num_hidden_layers"] = 6;
  file["norm_topk_prob"] = true;
  file["decoder_sparse_step"] = 2;
  file["mlp_only_layers"] = {0, 3};
  file["num_local_experts"] = file["num_experts"];  // As transformers 5 writes it.
  file.erase("num_experts");
  config = Load(file);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->experts.count, 16u);
  EXPECT_TRUE(config->experts.normalize);
  EXPECT_THAT(config->experts.in_layer, ElementsAre(false, true, false, false, false, true));

  file["architectures"] = {"Qwen2MoeForCausalLM"};
  file["shared_expert_intermediate_size"] = 48;
  config = Load(file);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->experts.shared_intermediate_size, 48u);
  EXPECT_TRUE(config->qkv_bias);
  file["qkv_bias"] = false;
  EXPECT_FALSE(Load(file)->qkv_bias);
}

TEST_F(ModelConfigTest, MixturesHaveWindowsOfTheirOwn) {
  const auto windows = [this](const Json& file) {
    std::vector<uint32_t> found;
    const ModelConfig config = Load(file).value();
    for (const LayerAttention& layer : config.layer_attention) {
      found.push_back(layer.window);
    }
    return found;
  };
  Json file = QwenMoe();
  file["sliding_window"] = 9;
  EXPECT_THAT(windows(file), ElementsAre(0, 0, 0));
  file["use_sliding_window"] = true;
  EXPECT_THAT(windows(file), ElementsAre(9, 9, 9));
  file["architectures"] = {"Qwen2MoeForCausalLM"};
  file["shared_expert_intermediate_size"] = 48;
  EXPECT_THAT(windows(file), ElementsAre(9, 0, 9));
  file["max_window_layers"] = 2;
  EXPECT_THAT(windows(file), ElementsAre(9, 0, 0));
  file["architectures"] = {"MixtralForCausalLM"};
  file.erase("use_sliding_window");
  EXPECT_THAT(windows(file), ElementsAre(9, 9, 9));
}

TEST_F(ModelConfigTest, RefusesExpertsThatMakeNoSense) {
  const auto refused = [this](const std::string& key, const Json& value, const std::string& word) {
    Json file = QwenMoe();
    file[key] = value;
    const absl::Status status = Load(file).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << " " << value;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(key), HasSubstr(word)));
  };

  refused("num_experts", nullptr, "missing");
  refused("num_experts", 0, "");
  refused("num_experts", 100000, "");
  refused("num_experts_per_tok", nullptr, "missing");
  refused("num_experts_per_tok", 17, "there are 16");
  refused("moe_intermediate_size", nullptr, "missing");
  refused("decoder_sparse_step", 0, "");
  refused("mlp_only_layers", {3}, "no layer");
  refused("mlp_only_layers", {-1}, "no layer");
  refused("mlp_only_layers", 1, "list");
  refused("norm_topk_prob", 1, "");
}

TEST_F(ModelConfigTest, ReadsDefaultsAndNulls) {
  EXPECT_EQ(LoadWith("num_key_value_heads", nullptr)->kv_heads, 8u);
  EXPECT_EQ(LoadWith("head_dim", 32)->head_dim, 32u);
  EXPECT_EQ(LoadWith("head_dim", nullptr)->head_dim, 8u);
  EXPECT_EQ(LoadWith("rope_theta", nullptr)->rope.theta, 10000.0f);
  EXPECT_TRUE(LoadWith("tie_word_embeddings", true)->tied_embeddings);
  EXPECT_EQ(LoadWith("torch_dtype", nullptr)->stored_dtype, DType::kF32);
}

TEST_F(ModelConfigTest, ReadsBothSpellingsOfTheType) {
  EXPECT_EQ(LoadWith("torch_dtype", "float16")->stored_dtype, DType::kF16);
  EXPECT_EQ(LoadWith("dtype", "float32")->stored_dtype, DType::kF32);
  ExpectRefused("torch_dtype", "float8_e4m3fn", "float8_e4m3fn");
}

TEST_F(ModelConfigTest, ReadsRopeInBothSpellings) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 1024}};
  Json with_theta = llama3;
  with_theta["rope_theta"] = 12345.0;

  const absl::StatusOr<ModelConfig> before = LoadWith("rope_scaling", llama3);
  const absl::StatusOr<ModelConfig> now = LoadWith("rope_parameters", with_theta);

  for (const auto& config : {before, now}) {
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(config->rope.factor, 8.0f);
    EXPECT_EQ(config->rope.high_freq_factor, 4.0f);
    EXPECT_EQ(config->rope.original_context_tokens, 1024u);
  }
  EXPECT_EQ(before->rope.theta, 500000.0f);
  EXPECT_EQ(now->rope.theta, 12345.0f);
}

TEST_F(ModelConfigTest, ReadsLinearRopeWithTheOldestSpelling) {
  const absl::StatusOr<ModelConfig> config =
      LoadWith("rope_scaling", {{"type", "linear"}, {"factor", 2.5}});

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(config->rope.factor, 2.5f);
}

TEST_F(ModelConfigTest, YarnScalesAttentionAndContext) {
  const Json yarn = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 4096}};
  const absl::StatusOr<ModelConfig> config = LoadWith("rope_scaling", yarn);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FLOAT_EQ(config->rope.attention_factor, 0.1f * std::log(4.0f) + 1.0f);
  EXPECT_EQ(config->rope.beta_fast, 32.0f);
  // Files often leave max_position_embeddings at the original context.
  EXPECT_EQ(config->context_tokens, 16384u);

  Json mscale = yarn;
  mscale["mscale"] = 1.0;
  mscale["mscale_all_dim"] = 0.5;
  EXPECT_FLOAT_EQ(LoadWith("rope_scaling", mscale)->rope.attention_factor,
                  (0.1f * std::log(4.0f) + 1.0f) / (0.05f * std::log(4.0f) + 1.0f));
  Json given = yarn;
  given["attention_factor"] = 0.75;
  EXPECT_FLOAT_EQ(LoadWith("rope_scaling", given)->rope.attention_factor, 0.75f);
}

TEST_F(ModelConfigTest, LongRopeHasTheFactorsOfItsContext) {
  const Json longrope = {{"type", "longrope"},
                         {"short_factor", {1.0, 1.1, 1.2, 1.3}},
                         {"long_factor", {1.0, 2.0, 4.0, 8.0}}};
  Json config = Llama();
  config["rope_scaling"] = longrope;

  EXPECT_THAT(std::string(Load(config).status().message()), HasSubstr("original_max_position"));
  config["original_max_position_embeddings"] = 4096;
  EXPECT_THAT(Load(config)->rope.divisors, ElementsAre(1.0f, 1.1f, 1.2f, 1.3f));
  EXPECT_EQ(Load(config)->rope.attention_factor, 1.0f);
  config["original_max_position_embeddings"] = 1024;
  EXPECT_THAT(Load(config)->rope.divisors, ElementsAre(1.0f, 2.0f, 4.0f, 8.0f));
  EXPECT_FLOAT_EQ(Load(config)->rope.attention_factor,
                  std::sqrt(1.0f + std::log(4.0f) / std::log(1024.0f)));
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_FLOAT_EQ(Load(config)->rope.attention_factor, 1.5f);
}

TEST_F(ModelConfigTest, Phi3RotatesPartOfAHead) {
  Json config = Llama();
  config["architectures"] = {"Phi3ForCausalLM"};
  EXPECT_EQ(Load(config)->rope.dim, 8u);
  config["partial_rotary_factor"] = 0.75;
  EXPECT_EQ(Load(config)->rope.dim, 6u);
  config["rope_parameters"] = {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}};
  EXPECT_EQ(Load(config)->rope.dim, 4u);
  for (double part : {0.0, 0.4, 1.5}) {
    config["rope_parameters"]["partial_rotary_factor"] = part;
    EXPECT_THAT(std::string(Load(config).status().message()), HasSubstr("partial_rotary_factor"));
  }
}

TEST_F(ModelConfigTest, RefusesRopeThatCannotBeComputed) {
  ExpectRefused("rope_theta", 1e-300);
  ExpectRefused("rope_theta", 1e-6, "radians");
  ExpectRefused("rope_scaling", {{"rope_type", "linear"}, {"factor", 1e-300}}, "factor");
  ExpectRefused("rope_scaling", {{"rope_type", "linear"}, {"factor", 1e-3}}, "radians");
  ExpectRefused("rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}, {"beta_fast", 1e300}},
                "beta_fast");
  Json longrope = {{"rope_type", "longrope"}, {"original_max_position_embeddings", 4096}};
  longrope["short_factor"] = {1, 2, 1e39, 4};
  ExpectRefused("rope_scaling", longrope, "short_factor has 1e+39");
  longrope["short_factor"] = {1, 2, 1e-9, 4};
  ExpectRefused("rope_scaling", longrope, "radians");
  ExpectRefused("rms_norm_eps", 1e-300, "must be positive");
}

TEST_F(ModelConfigTest, RefusesRopeItDoesNotKnow) {
  ExpectRefused("rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}, "dynamic");
  Json longrope = {{"rope_type", "longrope"}, {"original_max_position_embeddings", 4096}};
  ExpectRefused("rope_scaling", longrope, "short_factor");
  longrope["short_factor"] = {1, 2, 3};
  ExpectRefused("rope_scaling", longrope, "4 numbers");
  longrope["short_factor"] = {1, 2, 0, 4};
  ExpectRefused("rope_scaling", longrope, "has 0");
  longrope["long_mscale"] = 1.2;
  ExpectRefused("rope_scaling", longrope, "long_mscale");
  ExpectRefused("rope_scaling", {{"rope_type", "linear"}}, "factor is missing");
  ExpectRefused("rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}, "factor");
  ExpectRefused("rope_scaling", "linear");
  ExpectRefused("rope_parameters", {{"full_attention", {{"rope_type", "default"}}}},
                "full_attention");
  ExpectRefused("partial_rotary_factor", 0.5);
}

TEST_F(ModelConfigTest, ArchitecturesWithoutAWindowRefuseIt) {
  ExpectRefused("sliding_window", 1024, "sliding window");
  Json types = Llama();
  types["sliding_window"] = 4096;
  types["layer_types"] = {"full_attention", "full_attention", "sliding_attention"};
  EXPECT_FALSE(Load(types).ok());
  EXPECT_TRUE(LoadWith("sliding_window", nullptr).ok());
  EXPECT_TRUE(LoadWith("sliding_window", 4096).ok());  // As long as the context.
  EXPECT_TRUE(
      LoadWith("layer_types", Json::array({"full_attention", "full_attention", "full_attention"}))
          .ok());
  Json off = Llama();
  off["sliding_window"] = 1024;
  off["use_sliding_window"] = false;
  EXPECT_TRUE(Load(off).ok());
}

TEST_F(ModelConfigTest, MistralHasItsWindowInEveryLayer) {
  Json config = Llama();
  config["architectures"] = {"MistralForCausalLM"};
  config["max_position_embeddings"] = 32768;

  EXPECT_THAT(Windows(config), ElementsAre(4096, 4096, 4096));  // What it is if nothing is said.
  config["sliding_window"] = 1024;
  EXPECT_THAT(Windows(config), ElementsAre(1024, 1024, 1024));
  config["sliding_window"] = nullptr;
  EXPECT_THAT(Windows(config), ElementsAre(0, 0, 0));
  config["sliding_window"] = 32768;
  EXPECT_THAT(Windows(config), ElementsAre(0, 0, 0));
  config["sliding_window"] = 0;
  EXPECT_FALSE(Load(config).ok());
}

TEST_F(ModelConfigTest, QwenHasItsWindowInUpperLayersIfItIsUsed) {
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    Json config = Llama();
    config["architectures"] = {architecture};
    config["sliding_window"] = 1024;
    config["max_window_layers"] = 1;

    EXPECT_THAT(Windows(config), ElementsAre(0, 0, 0));
    config["use_sliding_window"] = true;
    EXPECT_THAT(Windows(config), ElementsAre(0, 1024, 1024));
    config["max_window_layers"] = nullptr;
    EXPECT_THAT(Windows(config), ElementsAre(0, 0, 0));
    config["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
    EXPECT_THAT(Windows(config), ElementsAre(1024, 0, 1024));
  }
}

TEST_F(ModelConfigTest, FirstVisibleIsThatOfTheLayerThatSeesMost) {
  Json config = Llama();
  EXPECT_EQ(Load(config)->FirstVisible(4000), 0u);

  config["architectures"] = {"MistralForCausalLM"};
  config["sliding_window"] = 1024;
  EXPECT_EQ(Load(config)->FirstVisible(0), 0u);
  EXPECT_EQ(Load(config)->FirstVisible(1023), 0u);
  EXPECT_EQ(Load(config)->FirstVisible(1024), 1u);
  EXPECT_EQ(Load(config)->FirstVisible(4000), 2977u);

  config["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(Load(config)->FirstVisible(4000), 0u);
}

TEST_F(ModelConfigTest, RefusesLayerTypesThatMakeNoSense) {
  Json config = Llama();
  config["architectures"] = {"Qwen2ForCausalLM"};
  config["sliding_window"] = 1024;
  const auto refused = [&](const Json& types, bool used, const std::string& word) {
    config["layer_types"] = types;
    config["use_sliding_window"] = used;
    const absl::Status status = Load(config).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  };

  refused({"sliding_attention", "full_attention", "full_attention"}, false,
          "sliding_window is not there or off");
  refused({"full_attention", "full_attention"}, true, "layer_types is not a list of 3");
  refused({"full_attention", "full_attention", "chunked_attention"}, true, "chunked_attention");
  refused("full_attention", true, "list");
}

TEST_F(ModelConfigTest, GemmaHasDefaultsOfItsOwn) {
  Json config = Llama();
  config.erase("hidden_act");
  config.erase("tie_word_embeddings");
  config.erase("rope_theta");
  config["num_hidden_layers"] = 6;
  config["max_position_embeddings"] = 8192;

  config["architectures"] = {"Gemma2ForCausalLM"};
  const ModelConfig gemma2 = *Load(config);
  EXPECT_EQ(gemma2.head_dim, 256u);
  EXPECT_TRUE(gemma2.tied_embeddings && gemma2.norms_plus_one && gemma2.output_norms &&
              gemma2.scaled_embedding);
  EXPECT_FALSE(gemma2.qk_norm);
  EXPECT_EQ(gemma2.activation, Activation::kGeluTanh);
  EXPECT_EQ(gemma2.attention_scale, 1.0f / 16.0f);
  EXPECT_EQ(gemma2.attention_soft_cap, 50.0f);
  EXPECT_EQ(gemma2.logit_soft_cap, 30.0f);
  EXPECT_EQ(gemma2.rope.theta, 10000.0f);
  EXPECT_THAT(Windows(config), ElementsAre(4096, 0, 4096, 0, 4096, 0));

  config["architectures"] = {"Gemma3ForCausalLM"};
  const ModelConfig gemma3 = *Load(config);
  EXPECT_TRUE(gemma3.qk_norm && gemma3.output_norms);
  EXPECT_EQ(gemma3.attention_soft_cap, 0.0f);
  EXPECT_EQ(gemma3.logit_soft_cap, 0.0f);
  EXPECT_EQ(gemma3.rope.theta, 1e6f);
  EXPECT_EQ(gemma3.local_rope.theta, 10000.0f);
  EXPECT_TRUE(gemma3.layer_attention[0].local_rope);
  EXPECT_FALSE(gemma3.layer_attention[5].local_rope);
  EXPECT_THAT(Windows(config), ElementsAre(4096, 4096, 4096, 4096, 4096, 0));

  config["architectures"] = {"GemmaForCausalLM"};
  const ModelConfig gemma = *Load(config);
  EXPECT_TRUE(gemma.norms_plus_one && !gemma.output_norms);
  EXPECT_EQ(gemma.attention_scale, 1.0f / 16.0f);
}

TEST_F(ModelConfigTest, Gemma3ReadsBothRotationsInBothSpellings) {
  Json before = Llama();
  before["architectures"] = {"Gemma3ForCausalLM"};
  before["hidden_act"] = "gelu_pytorch_tanh";
  before["rope_theta"] = 2e6;
  before["rope_local_base_freq"] = 20000.0;
  before["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  Json now = before;
  for (const char* key : {"rope_theta", "rope_local_base_freq", "rope_scaling"}) now.erase(key);
  now["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 2e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 20000.0}}}};

  for (const Json& json : {before, now}) {
    const absl::StatusOr<ModelConfig> config = Load(json);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope.theta, 2e6f);
    EXPECT_EQ(config->rope.scaling, RopeScaling::kLinear);
    EXPECT_EQ(config->rope.factor, 8.0f);
    EXPECT_EQ(config->local_rope.theta, 20000.0f);
    EXPECT_EQ(config->local_rope.scaling, RopeScaling::kNone);
  }
}

TEST_F(ModelConfigTest, GemmaRefusesWhatItDoesNotImplement) {
  Json config = Llama();
  config["architectures"] = {"Gemma3ForCausalLM"};
  config["hidden_activation"] = "gelu_pytorch_tanh";
  const auto refused = [&](const std::string& key, const Json& value) {
    Json changed = config;
    changed[key] = value;
    EXPECT_THAT(std::string(Load(changed).status().message()), HasSubstr(key));
  };

  EXPECT_TRUE(Load(config).ok());
  refused("hidden_activation", "gelu");
  refused("attn_logit_softcapping", 50.0);
  refused("final_logit_softcapping", -1.0);
  refused("query_pre_attn_scalar", 0);
  refused("use_bidirectional_attention", true);
  refused("sliding_window", nullptr);
  refused("rope_parameters", {{"full_attention", 3}});
}

TEST_F(ModelConfigTest, MixturesOfExpertsHaveTheirWindowInEveryLayer) {
  Json config = Llama();
  config["num_experts"] = 4;
  config["num_experts_per_tok"] = 2;
  config["moe_intermediate_size"] = 16;
  config["sliding_window"] = 1024;
  config["architectures"] = {"MixtralForCausalLM"};
  EXPECT_THAT(Windows(config), ElementsAre(1024, 1024, 1024));
  config["architectures"] = {"Qwen3MoeForCausalLM"};
  EXPECT_THAT(Windows(config), ElementsAre(0, 0, 0));
  config["use_sliding_window"] = true;
  EXPECT_THAT(Windows(config), ElementsAre(1024, 1024, 1024));
}

TEST_F(ModelConfigTest, RefusesWhatItDoesNotImplement) {
  ExpectRefused("architectures", {"T5ForConditionalGeneration"}, "T5ForConditionalGeneration");
  ExpectRefused("architectures", Json::array());
  ExpectRefused("hidden_act", "gelu", "gelu");
  ExpectRefused("attention_bias", true);
  ExpectRefused("mlp_bias", true);
  ExpectRefused("quantization_config", {{"quant_method", "gptq"}});
}

TEST_F(ModelConfigTest, RefusesNumbersThatMakeNoSense) {
  ExpectRefused("hidden_size", nullptr, "missing");
  ExpectRefused("hidden_size", 0);
  ExpectRefused("hidden_size", -5);
  ExpectRefused("hidden_size", 64.5);
  ExpectRefused("hidden_size", 1e15);
  ExpectRefused("hidden_size", "64");
  ExpectRefused("num_key_value_heads", 3, "divide");
  ExpectRefused("num_attention_heads", 7, "divide");
  ExpectRefused("head_dim", 7, "even");
  ExpectRefused("head_dim", 5000);
  ExpectRefused("rms_norm_eps", -1.0);
  ExpectRefused("rope_theta", 0);
  ExpectRefused("tie_word_embeddings", "yes");
}

TEST_F(ModelConfigTest, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "[]", "{", "3", "{\"vocab_size\": 1, \"vocab_size\": 2}"}) {
    Write("config.json", text);
    EXPECT_EQ(ModelConfig::Load(directory_).status().code(), absl::StatusCode::kInvalidArgument);
  }
  Write("config.json", std::string(100000, '['));
  EXPECT_THAT(std::string(ModelConfig::Load(directory_).status().message()), HasSubstr("nested"));
}

TEST_F(ModelConfigTest, MissingFileIsNamed) {
  const absl::Status status = ModelConfig::Load(directory_ + "/nowhere").status();

  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nowhere/config.json"));
}

TEST_F(ModelConfigTest, EosComesFromTheGenerationConfigFirst) {
  EXPECT_THAT(LoadWith("eos_token_id", 2)->eos_token_ids, ElementsAre(2));
  EXPECT_THAT(LoadWith("eos_token_id", {2, 5})->eos_token_ids, ElementsAre(2, 5));
  EXPECT_TRUE(LoadWith("eos_token_id", nullptr)->eos_token_ids.empty());
  ExpectRefused("eos_token_id", 1000);
  Write("generation_config.json", R"({"eos_token_id": [7, 8]})");
  EXPECT_THAT(LoadWith("eos_token_id", 2)->eos_token_ids, ElementsAre(7, 8));
  Write("generation_config.json", "{}");
  EXPECT_THAT(LoadWith("eos_token_id", 2)->eos_token_ids, ElementsAre(2));
  Write("generation_config.json", "{");
  EXPECT_FALSE(LoadWith("eos_token_id", 2).ok());
}

}  // namespace
}  // namespace baton
