// Writes small random models in Hugging Face's layout, from a seed, for tests. Any thread.
#ifndef BATON_COMMON_MODEL_TESTING_TINY_MODEL_H_
#define BATON_COMMON_MODEL_TESTING_TINY_MODEL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"

namespace baton {

struct TinyModelOptions {
  std::string architecture = "LlamaForCausalLM";  // Any that ModelConfig knows.
  uint32_t layers = 2;
  uint32_t hidden = 32;
  uint32_t intermediate = 64;
  uint32_t heads = 4;
  uint32_t kv_heads = 2;  // GPT-2 has as many as heads, and no head_dim of its own.
  uint32_t head_dim = 0;  // 0: hidden / heads.
  uint32_t vocab = 259;   // 256 bytes and the special tokens below, at least, if `tokenizer`.
  uint64_t seed = 1;
  uint32_t context_tokens = 512;
  uint32_t sliding_window = 0;  // 0: what the architecture has if nothing is said.
  float deviation = 0.3f;       // Of matrices: large enough that logits are not flat.
  bool tied_embeddings = false;
  DType dtype = DType::kF32;  // kF32, kBF16 or kF16, of every tensor.
  // Of architectures with experts; all layers have them.
  uint32_t experts = 4;
  uint32_t experts_per_token = 2;
  uint32_t expert_intermediate = 24;  // The shared expert's is `intermediate`.
  bool tokenizer = true;  // tokenizer.json and tokenizer_config.json (ChatML), byte by byte.
};

inline constexpr int32_t kTinyModelEndOfText = 256;  // <|endoftext|>, the EOS token.
inline constexpr int32_t kTinyModelImStart = 257;    // <|im_start|>
inline constexpr int32_t kTinyModelImEnd = 258;      // <|im_end|>

// Writes config.json, generation_config.json, model.safetensors and, if asked for, the tokenizer
// into `directory`, which exists. Equal options write equal bytes.
absl::Status WriteTinyModel(const std::string& directory, const TinyModelOptions& options);

}  // namespace baton

#endif  // BATON_COMMON_MODEL_TESTING_TINY_MODEL_H_
