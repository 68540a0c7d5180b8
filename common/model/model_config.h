// A model's architecture as config.json states it, checked and in our words.
#ifndef BATON_COMMON_MODEL_MODEL_CONFIG_H_
#define BATON_COMMON_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/tensor/dtype.h"

namespace baton {

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn, kLongRope };

// Rotary position embedding (Su et al., RoFormer, 2021) and its context extensions.
struct RopeConfig {
  uint32_t dim = 0;  // How many elements of each head are rotated: the first ones.
  float theta = 10000.0f;
  RopeScaling scaling = RopeScaling::kNone;
  float factor = 1.0f;
  float low_freq_factor = 1.0f;          // llama3
  float high_freq_factor = 4.0f;         // llama3
  uint32_t original_context_tokens = 0;  // llama3, yarn, longrope
  float beta_fast = 32.0f;               // yarn (Peng et al., 2023)
  float beta_slow = 1.0f;                // yarn
  bool truncate = true;                  // yarn: the ramp begins and ends at whole dimensions
  float attention_factor = 1.0f;         // yarn, longrope: scales cos and sin
  std::vector<float> divisors = {};      // longrope: of the frequencies, [dim / 2]
};

// How a layer's attention differs from that of the others.
struct LayerAttention {
  uint32_t window = 0;      // Tokens that a token sees, itself included; 0: all before it.
  bool local_rope = false;  // Rotates by ModelConfig::local_rope.
};

// Of the gate of a feed-forward network; without a gate, of what it widens to.
enum class Activation { kSilu, kGeluTanh };

// Before attention, before the network and at the end. kLayer has biases.
enum class NormKind { kRms, kLayer };

// How a file names its tensors.
enum class TensorNames {
  kLlama,
  kMixtral,
  kPhi3,  // As kLlama, but q, k and v are one matrix, as are gate and up.
  kGpt2,  // With or without "transformer." before each; matrices are [inputs, outputs].
};

// A mixture of experts (Shazeer et al., 2017) in place of the feed-forward network of some layers.
struct ExpertsConfig {
  uint32_t count = 0;  // 0: no layer has them.
  uint32_t per_token = 0;
  uint32_t intermediate_size = 0;         // Of one expert.
  uint32_t shared_intermediate_size = 0;  // Of the expert of all tokens (Qwen2-MoE); 0: none.
  bool normalize = false;                 // The weights of a token's experts add up to 1.
  std::vector<bool> in_layer;             // By layer.
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", …
  uint32_t vocab_size = 0;
  uint32_t hidden_size = 0;
  uint32_t intermediate_size = 0;  // Of layers without experts.
  uint32_t layers = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t context_tokens = 0;
  float norm_epsilon = 1e-6f;
  bool tied_embeddings = false;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3, Gemma 3
  NormKind norm_kind = NormKind::kRms;
  Activation activation = Activation::kSilu;
  bool gated_network = true;
  bool learned_positions = false;   // GPT-2: added to the embedding; nothing is rotated.
  bool scaled_embedding = false;    // Gemma: by sqrt(hidden_size), see ModelWeights.
  bool norms_plus_one = false;      // Gemma: norms are stored less one.
  bool output_norms = false;        // Gemma 2: what a layer's parts give is normalized, too.
  float attention_scale = 1.0f;     // Of the products of q and K.
  float attention_soft_cap = 0.0f;  // Gemma 2. 0: none.
  float logit_soft_cap = 0.0f;      // As attention_soft_cap.
  ExpertsConfig experts;
  RopeConfig rope;
  RopeConfig local_rope;  // Gemma 3, in layers with a window; else as rope.
  TensorNames tensor_names = TensorNames::kLlama;
  std::vector<LayerAttention> layer_attention;  // By layer.
  DType stored_dtype = DType::kF32;
  std::vector<TokenId> eos_token_ids;  // generation_config.json, else config.json.

  bool HasExperts(uint32_t layer) const { return experts.count > 0 && experts.in_layer[layer]; }

  // First position that the token at `position` sees in any layer.
  uint32_t FirstVisible(uint32_t position) const;

  // Reads config.json and generation_config.json (optional) of a Hugging Face folder.
  static absl::StatusOr<ModelConfig> Load(const std::string& directory);
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_MODEL_CONFIG_H_
