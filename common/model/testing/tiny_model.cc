#include "common/model/testing/tiny_model.h"

#include <cstddef>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/tensor/number_formats.h"

namespace baton {
namespace {

using Json = nlohmann::ordered_json;

// SplitMix64 (Steele et al., 2014): the same numbers with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Nearly normal, of variance 1: twelve uniform numbers added (Irwin and Hall).
  float Normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(Next() >> 11) * 0x1p-53;
    return static_cast<float>(sum);
  }

 private:
  uint64_t state_;
};

const char* StoredName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  return "I8";
}

const char* TorchName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  return "int8";
}

// Collects tensors, then writes them as one file.
class SafetensorsWriter {
 public:
  SafetensorsWriter(DType dtype, uint64_t seed) : dtype_(dtype), random_(seed) {}

  // Random numbers around `mean`.
  void Add(const std::string& name, const std::vector<uint32_t>& shape, float mean,
           float deviation) {
    const size_t begin = data_.size();
    size_t count = 1;
    for (uint32_t dim : shape) count *= dim;
    for (size_t i = 0; i < count; ++i) Append(mean + deviation * random_.Normal());
    header_[name] = {
        {"dtype", StoredName(dtype_)}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }

  std::string Finish() const {
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string file(8, '\0');
    for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i));
    return file + header + data_;
  }

 private:
  void Append(float value) {
    if (dtype_ == DType::kF32) {
      data_.append(reinterpret_cast<const char*>(&value), sizeof(value));
      return;
    }
    const uint16_t bits = dtype_ == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
    data_.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }

  const DType dtype_;
  Random random_;
  Json header_;
  std::string data_;
};

uint32_t HeadDim(const TinyModelOptions& options) {
  return options.head_dim != 0 ? options.head_dim : options.hidden / options.heads;
}

bool IsMixtral(const TinyModelOptions& options) {
  return options.architecture == "MixtralForCausalLM";
}
bool HasExperts(const TinyModelOptions& options) {
  return IsMixtral(options) || options.architecture == "Qwen2MoeForCausalLM" ||
         options.architecture == "Qwen3MoeForCausalLM";
}

bool IsGemma(const TinyModelOptions& options) {
  return options.architecture.rfind("Gemma", 0) == 0;
}

// Gemma stores norms less one.
float NormMean(const TinyModelOptions& options) { return IsGemma(options) ? 0.0f : 1.0f; }

std::string Config(const TinyModelOptions& options) {
  Json config = {{"architectures", {options.architecture}},
                 {"hidden_act", IsGemma(options) ? "gelu_pytorch_tanh" : "silu"},
                 {"vocab_size", options.vocab},
                 {"hidden_size", options.hidden},
                 {"intermediate_size", options.intermediate},
                 {"num_hidden_layers", options.layers},
                 {"num_attention_heads", options.heads},
                 {"num_key_value_heads", options.kv_heads},
                 {"head_dim", HeadDim(options)},
                 {"max_position_embeddings", options.context_tokens},
                 {"rms_norm_eps", 1e-6},
                 {"rope_theta", 10000.0},
                 {"tie_word_embeddings", options.tied_embeddings},
                 {"torch_dtype", TorchName(options.dtype)}};
  if (options.sliding_window != 0) config["sliding_window"] = options.sliding_window;
  if (HasExperts(options)) {
    config["num_experts_per_tok"] = options.experts_per_token;
    config[IsMixtral(options) ? "num_local_experts" : "num_experts"] = options.experts;
    config[IsMixtral(options) ? "intermediate_size" : "moe_intermediate_size"] =
        options.expert_intermediate;
    config["shared_expert_intermediate_size"] = options.intermediate;
  }
  if (options.tokenizer) config["eos_token_id"] = kTinyModelEndOfText;
  return config.dump(2);
}

// What the matrices of a feed-forward network are called.
struct NetworkNames {
  const char* gate;
  const char* up;
  const char* down;
};
constexpr NetworkNames kLlamaNetwork = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
constexpr NetworkNames kMixtralNetwork = {"w1.weight", "w3.weight", "w2.weight"};

void AddNetwork(const TinyModelOptions& options, const std::string& prefix,
                const NetworkNames& names, uint32_t inner, SafetensorsWriter* writer) {
  writer->Add(prefix + names.gate, {inner, options.hidden}, 0.0f, options.deviation);
  writer->Add(prefix + names.up, {inner, options.hidden}, 0.0f, options.deviation);
  writer->Add(prefix + names.down, {options.hidden, inner}, 0.0f, options.deviation);
}

void AddExperts(const TinyModelOptions& options, const std::string& prefix,
                SafetensorsWriter* writer) {
  const bool mixtral = IsMixtral(options);
  const std::string block = prefix + (mixtral ? "block_sparse_moe." : "mlp.");
  writer->Add(block + "gate.weight", {options.experts, options.hidden}, 0.0f, options.deviation);
  for (uint32_t expert = 0; expert < options.experts; ++expert) {
    AddNetwork(options, absl::StrCat(block, "experts.", expert, "."),
               mixtral ? kMixtralNetwork : kLlamaNetwork, options.expert_intermediate, writer);
  }
  if (options.architecture != "Qwen2MoeForCausalLM") return;
  writer->Add(block + "shared_expert_gate.weight", {1, options.hidden}, 0.0f, options.deviation);
  AddNetwork(options, block + "shared_expert.", kLlamaNetwork, options.intermediate, writer);
}

void AddLayer(const TinyModelOptions& options, uint32_t index, SafetensorsWriter* writer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const uint32_t head_dim = HeadDim(options);
  const uint32_t q_size = options.heads * head_dim;
  const uint32_t kv_size = options.kv_heads * head_dim;
  const float deviation = options.deviation;
  writer->Add(prefix + "input_layernorm.weight", {options.hidden}, NormMean(options), 0.1f);
  const bool fused = options.architecture == "Phi3ForCausalLM";
  if (fused) {
    writer->Add(attention + "qkv_proj.weight", {q_size + 2 * kv_size, options.hidden}, 0.0f,
                deviation);
  } else {
    writer->Add(attention + "q_proj.weight", {q_size, options.hidden}, 0.0f, deviation);
    writer->Add(attention + "k_proj.weight", {kv_size, options.hidden}, 0.0f, deviation);
    writer->Add(attention + "v_proj.weight", {kv_size, options.hidden}, 0.0f, deviation);
  }
  writer->Add(attention + "o_proj.weight", {options.hidden, q_size}, 0.0f, deviation);
  if (options.architecture == "Qwen2ForCausalLM" || options.architecture == "Qwen2MoeForCausalLM") {
    writer->Add(attention + "q_proj.bias", {q_size}, 0.0f, deviation);
    writer->Add(attention + "k_proj.bias", {kv_size}, 0.0f, deviation);
    writer->Add(attention + "v_proj.bias", {kv_size}, 0.0f, deviation);
  }
  if (options.architecture == "Qwen3ForCausalLM" || options.architecture == "Qwen3MoeForCausalLM" ||
      options.architecture == "Gemma3ForCausalLM") {
    writer->Add(attention + "q_norm.weight", {head_dim}, NormMean(options), 0.1f);
    writer->Add(attention + "k_norm.weight", {head_dim}, NormMean(options), 0.1f);
  }
  writer->Add(prefix + "post_attention_layernorm.weight", {options.hidden}, NormMean(options),
              0.1f);
  if (options.architecture == "Gemma2ForCausalLM" || options.architecture == "Gemma3ForCausalLM") {
    writer->Add(prefix + "pre_feedforward_layernorm.weight", {options.hidden}, NormMean(options),
                0.1f);
    writer->Add(prefix + "post_feedforward_layernorm.weight", {options.hidden}, NormMean(options),
                0.1f);
  }
  if (HasExperts(options)) {
    AddExperts(options, prefix, writer);
  } else if (fused) {
    writer->Add(prefix + "mlp.gate_up_proj.weight", {2 * options.intermediate, options.hidden},
                0.0f, deviation);
    writer->Add(prefix + "mlp.down_proj.weight", {options.hidden, options.intermediate}, 0.0f,
                deviation);
  } else {
    AddNetwork(options, prefix + "mlp.", kLlamaNetwork, options.intermediate, writer);
  }
}

std::string Weights(const TinyModelOptions& options) {
  SafetensorsWriter writer(options.dtype, options.seed);
  writer.Add("model.embed_tokens.weight", {options.vocab, options.hidden}, 0.0f, 1.0f);
  for (uint32_t index = 0; index < options.layers; ++index) AddLayer(options, index, &writer);
  writer.Add("model.norm.weight", {options.hidden}, NormMean(options), 0.1f);
  if (!options.tied_embeddings) {
    writer.Add("lm_head.weight", {options.vocab, options.hidden}, 0.0f, options.deviation);
  }
  return writer.Finish();
}

bool IsGpt2(const TinyModelOptions& options) { return options.architecture == "GPT2LMHeadModel"; }

std::string Gpt2Config(const TinyModelOptions& options) {
  Json config = {{"architectures", {options.architecture}},
                 {"activation_function", "gelu_new"},
                 {"vocab_size", options.vocab},
                 {"n_embd", options.hidden},
                 {"n_inner", options.intermediate},
                 {"n_layer", options.layers},
                 {"n_head", options.heads},
                 {"n_positions", options.context_tokens},
                 {"layer_norm_epsilon", 1e-5},
                 {"tie_word_embeddings", options.tied_embeddings},
                 {"torch_dtype", TorchName(options.dtype)}};
  if (options.tokenizer) config["eos_token_id"] = kTinyModelEndOfText;
  return config.dump(2);
}

// Matrices are [inputs, outputs].
void AddGpt2Layer(const TinyModelOptions& options, uint32_t index, SafetensorsWriter* writer) {
  const std::string prefix = absl::StrCat("transformer.h.", index, ".");
  const auto matrix = [&](const std::string& name, uint32_t inputs, uint32_t outputs) {
    writer->Add(prefix + name + ".weight", {inputs, outputs}, 0.0f, options.deviation);
    writer->Add(prefix + name + ".bias", {outputs}, 0.0f, 0.1f);
  };
  const auto norm = [&](const std::string& name) {
    writer->Add(prefix + name + ".weight", {options.hidden}, 1.0f, 0.1f);
    writer->Add(prefix + name + ".bias", {options.hidden}, 0.0f, 0.1f);
  };
  norm("ln_1");
  matrix("attn.c_attn", options.hidden, 3 * options.hidden);
  matrix("attn.c_proj", options.hidden, options.hidden);
  norm("ln_2");
  matrix("mlp.c_fc", options.hidden, options.intermediate);
  matrix("mlp.c_proj", options.intermediate, options.hidden);
}

std::string Gpt2Weights(const TinyModelOptions& options) {
  SafetensorsWriter writer(options.dtype, options.seed);
  writer.Add("transformer.wte.weight", {options.vocab, options.hidden}, 0.0f, 1.0f);
  writer.Add("transformer.wpe.weight", {options.context_tokens, options.hidden}, 0.0f, 1.0f);
  for (uint32_t index = 0; index < options.layers; ++index) AddGpt2Layer(options, index, &writer);
  writer.Add("transformer.ln_f.weight", {options.hidden}, 1.0f, 0.1f);
  writer.Add("transformer.ln_f.bias", {options.hidden}, 0.0f, 0.1f);
  if (!options.tied_embeddings) {
    writer.Add("lm_head.weight", {options.vocab, options.hidden}, 0.0f, options.deviation);
  }
  return writer.Finish();
}

std::string Utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)),
          static_cast<char>(0x80 | (code_point & 0x3f))};
}

// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the others for U+0100 and up.
Json ByteVocabulary() {
  Json vocabulary = Json::object();
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
                           (byte >= 0xae && byte <= 0xff);
    vocabulary[Utf8(printable ? byte : next++)] = byte;
  }
  return vocabulary;
}

std::string Tokenizer() {
  Json added = Json::array();
  const char* const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int32_t i = 0; i < 3; ++i) {
    added.push_back({{"id", kTinyModelEndOfText + i},
                     {"content", special[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", added},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr},
                          {"decoder", byte_level},
                          {"model",
                           {{"type", "BPE"},
                            {"dropout", nullptr},
                            {"unk_token", nullptr},
                            {"continuing_subword_prefix", nullptr},
                            {"end_of_word_suffix", nullptr},
                            {"fuse_unk", false},
                            {"byte_fallback", false},
                            {"ignore_merges", false},
                            {"vocab", ByteVocabulary()},
                            {"merges", Json::array()}}}};
  return tokenizer.dump(1);
}

std::string TokenizerConfig() {
  const Json config = {
      {"tokenizer_class", "GPT2TokenizerFast"},
      {"add_bos_token", false},
      {"eos_token", "<|endoftext|>"},
      {"chat_template",
       "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
       "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
       "{{ '<|im_start|>assistant\n' }}{% endif %}"}};
  return config.dump(2);
}

absl::Status WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) return absl::InternalError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteTinyModel(const std::string& directory, const TinyModelOptions& options) {
  if (options.tokenizer && options.vocab <= kTinyModelImEnd) {
    return absl::InvalidArgumentError("the tokenizer needs a vocabulary of at least 259");
  }
  BATON_RETURN_IF_ERROR(WriteFile(directory + "/config.json",
                                  IsGpt2(options) ? Gpt2Config(options) : Config(options)));
  const Json generation = options.tokenizer
                              ? Json{{"eos_token_id", {kTinyModelEndOfText, kTinyModelImEnd}}}
                              : Json::object();
  BATON_RETURN_IF_ERROR(WriteFile(directory + "/generation_config.json", generation.dump(2)));
  BATON_RETURN_IF_ERROR(WriteFile(directory + "/model.safetensors",
                                  IsGpt2(options) ? Gpt2Weights(options) : Weights(options)));
  if (!options.tokenizer) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(WriteFile(directory + "/tokenizer.json", Tokenizer()));
  return WriteFile(directory + "/tokenizer_config.json", TokenizerConfig());
}

}  // namespace baton
