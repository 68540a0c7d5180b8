// config.json and generation_config.json, as a worker and as a router read them. What the worker
// accepts is within its bounds and can be computed with, and the router has read the same.
#include <cmath>
#include <string>

#include "common/base/check.h"
#include "common/kernels/kernels.h"
#include "common/model/model_config.h"
#include "common/model/rope_angles.h"
#include "common/model/rope_reader.h"
#include "common/request/model_profile.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/scratch_folder.h"

namespace baton {
namespace {

// A tokenizer that fits any vocabulary.
constexpr const char* kTokenizer =
    R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"decoder":{"type":"ByteLevel"}})";

const ScratchFolder& Folder() {
  static const ScratchFolder folder;
  static const bool written = [] {
    folder.Write("tokenizer.json", kTokenizer);
    return true;
  }();
  BATON_CHECK(written);
  return folder;
}

bool IsPositive(float value) { return std::isfinite(value) && value > 0.0f; }

// Angles beyond it have no sine.
constexpr float kAngleMax = 1 << 20;

void CheckRope(const RopeConfig& rope, const ModelConfig& model) {
  BATON_CHECK(rope.dim % 2 == 0 && rope.dim <= model.head_dim);
  for (const float value : {rope.theta, rope.factor, rope.low_freq_factor, rope.high_freq_factor,
                            rope.beta_fast, rope.beta_slow, rope.attention_factor}) {
    BATON_CHECK(IsPositive(value));
  }
  for (const float divisor : rope.divisors) BATON_CHECK(IsPositive(divisor));
  const RopeAngles angles(rope);
  for (const float frequency : angles.frequencies()) {
    BATON_CHECK(frequency >= 0.0f);
    BATON_CHECK(frequency * static_cast<float>(model.context_tokens) <= kAngleMax);
  }
}

void CheckWorker(const ModelConfig& model) {
  BATON_CHECK(model.layers > 0 && model.layer_attention.size() == model.layers);
  BATON_CHECK(model.vocab_size > 0 && model.hidden_size > 0 && model.intermediate_size > 0);
  BATON_CHECK(model.kv_heads > 0 && model.heads % model.kv_heads == 0);
  BATON_CHECK(model.head_dim >= 2 && model.head_dim <= kHeadDimMax && model.head_dim % 2 == 0);
  BATON_CHECK(model.context_tokens > 0 && model.context_tokens <= kContextTokensMax);
  BATON_CHECK(IsPositive(model.norm_epsilon) && IsPositive(model.attention_scale));
  BATON_CHECK(std::isfinite(model.attention_soft_cap) && model.attention_soft_cap >= 0.0f);
  BATON_CHECK(std::isfinite(model.logit_soft_cap) && model.logit_soft_cap >= 0.0f);
  for (const LayerAttention& layer : model.layer_attention) {
    BATON_CHECK(layer.window < model.context_tokens);
  }
  for (const TokenId id : model.eos_token_ids) {
    BATON_CHECK(id >= 0 && static_cast<uint32_t>(id) < model.vocab_size);
  }
  if (model.experts.count > 0) {
    BATON_CHECK(model.experts.per_token > 0 && model.experts.per_token <= model.experts.count);
    BATON_CHECK(model.experts.in_layer.size() == model.layers);
    BATON_CHECK(model.experts.intermediate_size > 0);
  }
  BATON_CHECK(model.FirstVisible(model.context_tokens - 1) < model.context_tokens);
  if (model.learned_positions) return;
  CheckRope(model.rope, model);
  CheckRope(model.local_rope, model);
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using baton::Folder;
  baton::FuzzInput input(data, size);
  Folder().Write("config.json", input.Until('\0'));
  if (input.empty()) {
    Folder().Remove("generation_config.json");
  } else {
    Folder().Write("generation_config.json", input.Rest());
  }
  const auto router = baton::ModelProfile::Load(Folder().path());
  const auto worker = baton::ModelConfig::Load(Folder().path());
  if (worker.ok()) baton::CheckWorker(*worker);
  if (router.ok()) BATON_CHECK(router->vocab_size > 0 && router->context_tokens >= 2);
  if (worker.ok() && router.ok()) {
    BATON_CHECK(router->architecture == worker->architecture);
    BATON_CHECK(router->vocab_size == worker->vocab_size);
    BATON_CHECK(router->context_tokens == worker->context_tokens);
    BATON_CHECK(router->eos_token_ids == worker->eos_token_ids);
  }
  return 0;
}
