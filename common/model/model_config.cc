#include "common/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/kernels/kernels.h"
#include "common/model/json_file.h"
#include "common/model/rope_angles.h"
#include "common/model/rope_reader.h"

namespace baton {
namespace {

constexpr size_t kConfigBytesMax = 1 << 20;
// No dimension of a model comes near; products of three fit into 64 bits.
constexpr uint32_t kDimensionMax = 1u << 20;
constexpr uint32_t kLayersMax = 4096;
constexpr uint32_t kVocabSizeMax = 1u << 24;
constexpr size_t kEosTokensMax = 64;
constexpr uint32_t kExpertsMax = 4096;

// Which layers have a sliding window where config.json has no layer_types.
enum class SlidingLayers {
  kNone,       // Nor may config.json ask for one.
  kEvery,      // If there is a window.
  kUpper,      // From max_window_layers on, if there is a window.
  kAlternate,  // The first, third, … below max_window_layers, if there is a window.
  kMost,       // All but each sliding_window_pattern-th.
};

// As config.json describes them.
enum class ExpertKeys { kNone, kMixtral, kQwen, kQwenShared };

// What distinguishes the architectures, all else being equal; numbers hold if config.json has none.
struct Family {
  const char* architecture;
  bool qkv_bias = false;
  bool qk_norm = false;
  uint32_t head_dim = 0;  // 0: hidden_size / heads.
  float rms_norm_eps = 1e-6f;
  float rope_theta = 10000.0f;
  float local_rope_theta = 0.0f;  // 0: layers with a window rotate like the others.
  bool partial_rotary = false;    // Whether heads may be rotated in part.
  ExpertKeys experts = ExpertKeys::kNone;
  TensorNames tensor_names = TensorNames::kLlama;
  SlidingLayers sliding_layers = SlidingLayers::kNone;
  uint32_t sliding_window = 0;
  bool use_sliding_window = true;
  uint32_t sliding_window_pattern = 0;
  bool tied_embeddings = false;
  Activation activation = Activation::kSilu;
  bool gemma_norms = false;  // With a scaled embedding.
  bool output_norms = false;
  uint32_t query_scalar = 0;  // query_pre_attn_scalar; 0: head_dim, and no such key.
  std::optional<float> attention_soft_cap = {};  // Without a value: no such key.
  std::optional<float> logit_soft_cap = {};
};
constexpr Family kFamilies[] = {
    {.architecture = "GemmaForCausalLM",
     .head_dim = 256,
     .tied_embeddings = true,
     .activation = Activation::kGeluTanh,
     .gemma_norms = true},
    {.architecture = "Gemma2ForCausalLM",
     .head_dim = 256,
     .sliding_layers = SlidingLayers::kMost,
     .sliding_window = 4096,
     .sliding_window_pattern = 2,
     .tied_embeddings = true,
     .activation = Activation::kGeluTanh,
     .gemma_norms = true,
     .output_norms = true,
     .query_scalar = 256,
     .attention_soft_cap = 50.0f,
     .logit_soft_cap = 30.0f},
    {.architecture = "Gemma3ForCausalLM",
     .qk_norm = true,
     .head_dim = 256,
     .rope_theta = 1e6f,
     .local_rope_theta = 10000.0f,
     .sliding_layers = SlidingLayers::kMost,
     .sliding_window = 4096,
     .sliding_window_pattern = 6,
     .tied_embeddings = true,
     .activation = Activation::kGeluTanh,
     .gemma_norms = true,
     .output_norms = true,
     .query_scalar = 256,
     .logit_soft_cap = 0.0f},
    {.architecture = "GPT2LMHeadModel", .tensor_names = TensorNames::kGpt2},
    {.architecture = "LlamaForCausalLM"},
    {.architecture = "MistralForCausalLM",
     .sliding_layers = SlidingLayers::kEvery,
     .sliding_window = 4096},
    {.architecture = "MixtralForCausalLM",
     .rms_norm_eps = 1e-5f,
     .rope_theta = 1e6f,
     .experts = ExpertKeys::kMixtral,
     .tensor_names = TensorNames::kMixtral,
     .sliding_layers = SlidingLayers::kEvery},
    {.architecture = "Phi3ForCausalLM",
     .rms_norm_eps = 1e-5f,
     .partial_rotary = true,
     .tensor_names = TensorNames::kPhi3,
     .sliding_layers = SlidingLayers::kEvery},
    {.architecture = "Qwen2ForCausalLM",
     .qkv_bias = true,
     .sliding_layers = SlidingLayers::kUpper,
     .sliding_window = 4096,
     .use_sliding_window = false},
    {.architecture = "Qwen2MoeForCausalLM",
     .qkv_bias = true,
     .experts = ExpertKeys::kQwenShared,
     .sliding_layers = SlidingLayers::kAlternate,
     .sliding_window = 4096,
     .use_sliding_window = false},
    {.architecture = "Qwen3ForCausalLM",
     .qk_norm = true,
     .head_dim = 128,
     .sliding_layers = SlidingLayers::kUpper,
     .sliding_window = 4096,
     .use_sliding_window = false},
    {.architecture = "Qwen3MoeForCausalLM",
     .qk_norm = true,
     .experts = ExpertKeys::kQwen,
     .sliding_layers = SlidingLayers::kEvery,
     .sliding_window = 4096,
     .use_sliding_window = false},
};

absl::StatusOr<Family> ReadFamily(const JsonReader& config) {
  const nlohmann::json* list = config.Find("architectures");
  if (list == nullptr || !list->is_array() || list->size() != 1 || !list->front().is_string()) {
    return config.Error("architectures", "must be a list of one name");
  }
  const std::string name = list->front().get<std::string>();
  std::string known;
  for (const Family& family : kFamilies) {
    if (name == family.architecture) return family;
    absl::StrAppend(&known, known.empty() ? "" : ", ", family.architecture);
  }
  return config.Error("architectures", absl::StrCat("names '", name, "', which is not supported; ",
                                                    "supported are ", known));
}

absl::Status RefuseIfTrue(const JsonReader& config, const char* key) {
  BATON_ASSIGN_OR_RETURN(const bool value, config.Boolean(key, false));
  if (value) return config.Error(key, "is true, which is not supported");
  return absl::OkStatus();
}

// The window of those layers that have one; 0: none has.
absl::StatusOr<uint32_t> ReadWindow(const JsonReader& config, const Family& family) {
  BATON_ASSIGN_OR_RETURN(const bool used,
                         config.Boolean("use_sliding_window", family.use_sliding_window));
  if (!used || config.IsNull("sliding_window")) return 0;
  if (!config.Has("sliding_window")) return family.sliding_window;
  return config.Integer("sliding_window", 1, std::numeric_limits<int32_t>::max());
}

// layer_types: for each layer, whether it is of type "sliding_attention".
absl::StatusOr<std::vector<bool>> ReadLayerTypes(const JsonReader& config, uint32_t layers) {
  const nlohmann::json& types = *config.Find("layer_types");
  if (!types.is_array() || types.size() != layers) {
    return config.Error("layer_types", absl::StrCat("is not a list of ", layers, " names"));
  }
  std::vector<bool> sliding;
  for (const nlohmann::json& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      return config.Error("layer_types",
                          absl::StrCat("has ", type.dump(), ", which is not supported; supported ",
                                       "are full_attention, sliding_attention"));
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

// For each layer, whether it has the window `window` (0: there is none).
absl::StatusOr<std::vector<bool>> ReadSlidingLayers(const JsonReader& config, const Family& family,
                                                    uint32_t layers, uint32_t window) {
  if (config.Has("layer_types")) return ReadLayerTypes(config, layers);
  std::vector<bool> sliding(layers, false);
  switch (family.sliding_layers) {
    case SlidingLayers::kNone:
      break;
    case SlidingLayers::kEvery:
      sliding.assign(layers, window != 0);
      break;
    case SlidingLayers::kUpper: {
      BATON_ASSIGN_OR_RETURN(const uint32_t begin,
                             config.Integer("max_window_layers", 0, kLayersMax, 28));
      for (uint32_t layer = begin; layer < layers; ++layer) sliding[layer] = window != 0;
      break;
    }
    case SlidingLayers::kMost: {
      BATON_ASSIGN_OR_RETURN(
          const uint32_t pattern,
          config.Integer("sliding_window_pattern", 1, kLayersMax, family.sliding_window_pattern));
      for (uint32_t layer = 0; layer < layers; ++layer) sliding[layer] = (layer + 1) % pattern != 0;
      break;
    }
    case SlidingLayers::kAlternate: {
      BATON_ASSIGN_OR_RETURN(const uint32_t end,
                             config.Integer("max_window_layers", 0, kLayersMax, 28));
      for (uint32_t layer = 0; layer < std::min(end, layers); layer += 2) {
        sliding[layer] = window != 0;
      }
      break;
    }
  }
  return sliding;
}

// REQUIRES: model->context_tokens is final.
absl::Status ReadLayerAttention(const JsonReader& config, const Family& family,
                                ModelConfig* model) {
  BATON_ASSIGN_OR_RETURN(const uint32_t window, ReadWindow(config, family));
  BATON_ASSIGN_OR_RETURN(const std::vector<bool> sliding,
                         ReadSlidingLayers(config, family, model->layers, window));
  const bool some = std::find(sliding.begin(), sliding.end(), true) != sliding.end();
  if (some && window == 0) {
    return config.Error("sliding_window",
                        "is not there or off, but layers are of sliding_attention");
  }
  const bool limited = window != 0 && window < model->context_tokens;
  if (family.sliding_layers == SlidingLayers::kNone && (some || limited)) {
    return config.Error(
        some ? "layer_types" : "sliding_window",
        absl::StrCat("asks for a sliding window, which ", family.architecture, " does not have"));
  }
  model->layer_attention.resize(model->layers);
  for (uint32_t layer = 0; layer < model->layers; ++layer) {
    if (!sliding[layer]) continue;
    // A window as long as the context hides nothing.
    if (limited) model->layer_attention[layer].window = window;
    model->layer_attention[layer].local_rope = family.local_rope_theta != 0.0f;
  }
  return absl::OkStatus();
}

absl::Status ReadActivation(const JsonReader& config, const Family& family, ModelConfig* model) {
  model->activation = family.activation;
  const bool gelu = family.activation == Activation::kGeluTanh;
  const char* const expected = gelu ? "gelu_pytorch_tanh" : "silu";
  const char* const key = config.Has("hidden_activation") ? "hidden_activation" : "hidden_act";
  BATON_ASSIGN_OR_RETURN(const std::string name, config.String(key, expected));
  if (name == expected || (!gelu && name == "swish")) return absl::OkStatus();
  return config.Error(key, absl::StrCat("is '", name, "'; only ", expected, " is supported"));
}

// A number, or null for none.
absl::StatusOr<float> ReadSoftCap(const JsonReader& config, const char* key,
                                  std::optional<float> default_value) {
  if (!default_value.has_value() && config.Has(key)) return config.Error(key, "is not supported");
  if (config.Has(key)) return config.PositiveNumber(key);
  return config.IsNull(key) ? 0.0f : default_value.value_or(0.0f);
}

// How scores and logits are scaled and capped.
absl::Status ReadScores(const JsonReader& config, const Family& family, ModelConfig* model) {
  float scalar = static_cast<float>(model->head_dim);
  if (family.query_scalar != 0) {
    BATON_ASSIGN_OR_RETURN(scalar,
                           config.PositiveNumber("query_pre_attn_scalar", family.query_scalar));
  }
  model->attention_scale = 1.0f / std::sqrt(scalar);
  BATON_ASSIGN_OR_RETURN(model->attention_soft_cap,
                         ReadSoftCap(config, "attn_logit_softcapping", family.attention_soft_cap));
  BATON_ASSIGN_OR_RETURN(model->logit_soft_cap,
                         ReadSoftCap(config, "final_logit_softcapping", family.logit_soft_cap));
  return absl::OkStatus();
}

// Options that change the computation and that we do not implement.
absl::Status RefuseUnsupported(const JsonReader& config) {
  BATON_RETURN_IF_ERROR(RefuseIfTrue(config, "attention_bias"));
  BATON_RETURN_IF_ERROR(RefuseIfTrue(config, "mlp_bias"));
  BATON_RETURN_IF_ERROR(RefuseIfTrue(config, "use_qk_norm"));
  return RefuseIfTrue(config, "use_bidirectional_attention");
}

// Files that extend the context by yarn often leave max_position_embeddings at the original one.
uint32_t ExtendedContext(const ModelConfig& model) {
  if (model.rope.scaling != RopeScaling::kYarn) return model.context_tokens;
  const double extended =
      std::min<double>(static_cast<double>(model.rope.original_context_tokens) * model.rope.factor,
                       kContextTokensMax);
  return std::max(model.context_tokens, static_cast<uint32_t>(extended));
}

absl::Status ReadDimensions(const JsonReader& config, const Family& family, ModelConfig* model) {
  BATON_ASSIGN_OR_RETURN(model->vocab_size, config.Integer("vocab_size", 1, kVocabSizeMax));
  BATON_ASSIGN_OR_RETURN(model->hidden_size, config.Integer("hidden_size", 1, kDimensionMax));
  BATON_ASSIGN_OR_RETURN(model->intermediate_size,
                         config.Integer("intermediate_size", 1, kDimensionMax));
  BATON_ASSIGN_OR_RETURN(model->layers, config.Integer("num_hidden_layers", 1, kLayersMax));
  BATON_ASSIGN_OR_RETURN(model->heads, config.Integer("num_attention_heads", 1, kDimensionMax));
  BATON_ASSIGN_OR_RETURN(model->kv_heads,
                         config.Integer("num_key_value_heads", 1, kDimensionMax, model->heads));
  if (model->heads % model->kv_heads != 0) {
    return config.Error("num_key_value_heads",
                        absl::StrCat("(", model->kv_heads,
                                     ") does not divide num_attention_heads (", model->heads, ")"));
  }
  if (!config.Has("head_dim") && family.head_dim == 0 && model->hidden_size % model->heads != 0) {
    return config.Error("num_attention_heads", "does not divide hidden_size");
  }
  BATON_ASSIGN_OR_RETURN(
      model->head_dim,
      config.Integer("head_dim", 2, kHeadDimMax,
                     family.head_dim != 0 ? family.head_dim : model->hidden_size / model->heads));
  if (model->head_dim < 2 || model->head_dim > kHeadDimMax || model->head_dim % 2 != 0) {
    return config.Error("head_dim", absl::StrCat("is ", model->head_dim,
                                                 "; it must be even and at most ", kHeadDimMax));
  }
  BATON_ASSIGN_OR_RETURN(model->context_tokens,
                         config.Integer("max_position_embeddings", 1, kContextTokensMax, 2048));
  return absl::OkStatus();
}

// Which layers have experts: each `decoder_sparse_step`-th, but none of `mlp_only_layers`.
absl::Status ReadSparseLayers(const JsonReader& config, ModelConfig* model) {
  std::vector<bool>& in_layer = model->experts.in_layer;
  BATON_ASSIGN_OR_RETURN(const uint32_t step,
                         config.Integer("decoder_sparse_step", 1, kLayersMax, 1));
  for (uint32_t layer = 0; layer < model->layers; ++layer) {
    in_layer[layer] = (layer + 1) % step == 0;
  }
  const nlohmann::json* dense = config.Find("mlp_only_layers");
  if (dense == nullptr) return absl::OkStatus();
  if (!dense->is_array()) return config.Error("mlp_only_layers", "is not a list");
  for (const nlohmann::json& layer : *dense) {
    if (!layer.is_number_unsigned() || layer.get<uint64_t>() >= model->layers) {
      return config.Error("mlp_only_layers",
                          absl::StrCat("has ", layer.dump(), ", which is no layer"));
    }
    in_layer[layer.get<size_t>()] = false;
  }
  return absl::OkStatus();
}

absl::Status ReadExperts(const JsonReader& config, const Family& family, ModelConfig* model) {
  if (family.experts == ExpertKeys::kNone) return absl::OkStatus();
  ExpertsConfig& experts = model->experts;
  // Files of either family use either name.
  const bool local = config.Has("num_local_experts");
  BATON_ASSIGN_OR_RETURN(
      experts.count, config.Integer(local ? "num_local_experts" : "num_experts", 1, kExpertsMax));
  BATON_ASSIGN_OR_RETURN(experts.per_token, config.Integer("num_experts_per_tok", 1, kExpertsMax));
  if (experts.per_token > experts.count) {
    return config.Error("num_experts_per_tok",
                        absl::StrCat("is ", experts.per_token, ", but there are ", experts.count));
  }
  experts.in_layer.assign(model->layers, true);
  if (family.experts == ExpertKeys::kMixtral) {
    experts.intermediate_size = model->intermediate_size;
    experts.normalize = true;
    return absl::OkStatus();
  }
  BATON_ASSIGN_OR_RETURN(experts.intermediate_size,
                         config.Integer("moe_intermediate_size", 1, kDimensionMax));
  BATON_ASSIGN_OR_RETURN(experts.normalize, config.Boolean("norm_topk_prob", false));
  if (family.experts == ExpertKeys::kQwenShared) {
    BATON_ASSIGN_OR_RETURN(experts.shared_intermediate_size,
                           config.Integer("shared_expert_intermediate_size", 1, kDimensionMax));
    BATON_ASSIGN_OR_RETURN(model->qkv_bias, config.Boolean("qkv_bias", model->qkv_bias));
  }
  return ReadSparseLayers(config, model);
}

absl::Status ReadStoredType(const JsonReader& config, ModelConfig* model) {
  const char* key = config.Has("dtype") ? "dtype" : "torch_dtype";
  BATON_ASSIGN_OR_RETURN(const std::string name, config.String(key, "float32"));
  if (name == "float32") {
    model->stored_dtype = DType::kF32;
  } else if (name == "bfloat16") {
    model->stored_dtype = DType::kBF16;
  } else if (name == "float16") {
    model->stored_dtype = DType::kF16;
  } else {
    return config.Error(key, absl::StrCat("is '", name, "', which is not supported; supported are ",
                                          "float32, bfloat16, float16"));
  }
  return absl::OkStatus();
}

// eos_token_id: a number, or a list of numbers.
absl::Status ReadEos(const JsonReader& reader, ModelConfig* model) {
  const nlohmann::json* value = reader.Find("eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  if (list.size() > kEosTokensMax) return reader.Error("eos_token_id", "has too many entries");
  for (const nlohmann::json& id : list) {
    // -1 stands for "none" in some files.
    if (id.is_number_integer() && id.get<int64_t>() == -1) continue;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= model->vocab_size) {
      return reader.Error("eos_token_id", absl::StrCat("has ", id.dump(), ", which is no token"));
    }
    model->eos_token_ids.push_back(static_cast<TokenId>(id.get<uint64_t>()));
  }
  return absl::OkStatus();
}

absl::Status ReadEosTokens(const JsonReader& config, const std::string& directory,
                           ModelConfig* model) {
  const std::string path = directory + "/generation_config.json";
  const absl::StatusOr<std::string> text = ReadTextFile(path, kConfigBytesMax);
  if (text.ok()) {
    BATON_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(*text, path));
    BATON_RETURN_IF_ERROR(ReadEos(JsonReader(json, path), model));
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  if (!model->eos_token_ids.empty()) return absl::OkStatus();
  return ReadEos(config, model);
}

// No position may turn by an angle that StableSinCos does not take.
absl::Status CheckAngles(const JsonReader& config, const RopeConfig& rope,
                         uint32_t context_tokens) {
  const RopeAngles angles(rope);
  for (const float frequency : angles.frequencies()) {
    const double angle = static_cast<double>(frequency) * context_tokens;
    if (angle >= 0.0 && angle <= kContextTokensMax) continue;
    return config.Error("rope_theta",
                        absl::StrCat("and rope_scaling turn the last position by ", angle,
                                     " radians; at most ", kContextTokensMax, " are supported"));
  }
  return absl::OkStatus();
}

// Llama and its descendants.
absl::Status ReadLlama(const JsonReader& config, const Family& family, ModelConfig* model) {
  model->qkv_bias = family.qkv_bias;
  model->qk_norm = family.qk_norm;
  model->scaled_embedding = family.gemma_norms;
  model->norms_plus_one = family.gemma_norms;
  model->output_norms = family.output_norms;
  BATON_RETURN_IF_ERROR(ReadDimensions(config, family, model));
  BATON_RETURN_IF_ERROR(ReadExperts(config, family, model));
  BATON_ASSIGN_OR_RETURN(model->norm_epsilon,
                         config.PositiveNumber("rms_norm_eps", family.rms_norm_eps));
  BATON_ASSIGN_OR_RETURN(model->tied_embeddings,
                         config.Boolean("tie_word_embeddings", family.tied_embeddings));
  BATON_RETURN_IF_ERROR(ReadActivation(config, family, model));
  BATON_RETURN_IF_ERROR(ReadScores(config, family, model));
  BATON_RETURN_IF_ERROR(RefuseUnsupported(config));
  const RopeDefaults rope = {.head_dim = model->head_dim,
                             .context_tokens = model->context_tokens,
                             .theta = family.rope_theta,
                             .local_theta = family.local_rope_theta,
                             .partial = family.partial_rotary};
  BATON_ASSIGN_OR_RETURN(model->rope, ReadRope(config, rope));
  BATON_ASSIGN_OR_RETURN(model->local_rope, ReadLocalRope(config, rope));
  model->context_tokens = ExtendedContext(*model);
  BATON_RETURN_IF_ERROR(CheckAngles(config, model->rope, model->context_tokens));
  BATON_RETURN_IF_ERROR(CheckAngles(config, model->local_rope, model->context_tokens));
  return ReadLayerAttention(config, family, model);
}

absl::Status ReadGpt2Dimensions(const JsonReader& config, ModelConfig* model) {
  BATON_ASSIGN_OR_RETURN(model->vocab_size, config.Integer("vocab_size", 1, kVocabSizeMax));
  BATON_ASSIGN_OR_RETURN(model->hidden_size, config.Integer("n_embd", 1, kDimensionMax));
  BATON_ASSIGN_OR_RETURN(model->layers, config.Integer("n_layer", 1, kLayersMax));
  BATON_ASSIGN_OR_RETURN(model->heads, config.Integer("n_head", 1, kDimensionMax));
  BATON_ASSIGN_OR_RETURN(model->intermediate_size,
                         config.Integer("n_inner", 1, kDimensionMax, 4 * model->hidden_size));
  BATON_ASSIGN_OR_RETURN(model->context_tokens,
                         config.Integer("n_positions", 1, kContextTokensMax, 1024));
  model->kv_heads = model->heads;
  model->head_dim = model->hidden_size / model->heads;
  if (model->hidden_size % model->heads != 0) {
    return config.Error("n_head", "does not divide n_embd");
  }
  if (model->head_dim < 2 || model->head_dim > kHeadDimMax || model->head_dim % 2 != 0) {
    return config.Error("n_head", absl::StrCat("makes heads of ", model->head_dim,
                                               "; they must be even and at most ", kHeadDimMax));
  }
  return absl::OkStatus();
}

// GPT-2 (Radford et al., 2019).
absl::Status ReadGpt2(const JsonReader& config, ModelConfig* model) {
  model->qkv_bias = true;
  model->norm_kind = NormKind::kLayer;
  model->activation = Activation::kGeluTanh;
  model->gated_network = false;
  model->learned_positions = true;
  BATON_RETURN_IF_ERROR(ReadGpt2Dimensions(config, model));
  model->layer_attention.resize(model->layers);
  model->attention_scale = 1.0f / std::sqrt(static_cast<float>(model->head_dim));
  BATON_ASSIGN_OR_RETURN(model->norm_epsilon, config.PositiveNumber("layer_norm_epsilon", 1e-5));
  BATON_ASSIGN_OR_RETURN(model->tied_embeddings, config.Boolean("tie_word_embeddings", true));
  // Two names of the same function.
  BATON_ASSIGN_OR_RETURN(const std::string activation,
                         config.String("activation_function", "gelu_new"));
  if (activation != "gelu_new" && activation != "gelu_pytorch_tanh") {
    return config.Error("activation_function",
                        absl::StrCat("is '", activation, "'; only gelu_new is supported"));
  }
  BATON_ASSIGN_OR_RETURN(const bool scaled, config.Boolean("scale_attn_weights", true));
  if (!scaled) return config.Error("scale_attn_weights", "is false, which is not supported");
  BATON_RETURN_IF_ERROR(RefuseIfTrue(config, "scale_attn_by_inverse_layer_idx"));
  return RefuseIfTrue(config, "add_cross_attention");
}

}  // namespace

uint32_t ModelConfig::FirstVisible(uint32_t position) const {
  uint32_t first = layer_attention.empty() ? 0 : position;
  for (const LayerAttention& layer : layer_attention) {
    first = std::min(first, WindowBegin(position, layer.window));
  }
  return first;
}

absl::StatusOr<ModelConfig> ModelConfig::Load(const std::string& directory) {
  const std::string path = directory + "/config.json";
  BATON_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kConfigBytesMax));
  BATON_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, path));
  const JsonReader config(json, path);
  BATON_ASSIGN_OR_RETURN(const Family family, ReadFamily(config));
  if (config.Has("quantization_config")) {
    return config.Error("quantization_config", "is there: quantized weights are not supported");
  }
  ModelConfig model;
  model.architecture = family.architecture;
  model.tensor_names = family.tensor_names;
  const bool gpt2 = family.tensor_names == TensorNames::kGpt2;
  BATON_RETURN_IF_ERROR(gpt2 ? ReadGpt2(config, &model) : ReadLlama(config, family, &model));
  BATON_RETURN_IF_ERROR(ReadStoredType(config, &model));
  BATON_RETURN_IF_ERROR(ReadEosTokens(config, directory, &model));
  return model;
}

}  // namespace baton
