#include "common/model/rope_reader.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/deterministic_math.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

bool IsPositive(float value) { return std::isfinite(value) && value > 0.0f; }

// yarn's "mscale" (Peng et al., 2023, equation 22).
double YarnScale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * StableLog(factor) + 1.0;
}

absl::Status ReadYarn(const JsonReader& scaling, uint32_t context_tokens, RopeConfig* rope) {
  BATON_ASSIGN_OR_RETURN(rope->factor,
                         scaling.PositiveNumber("factor", static_cast<double>(context_tokens) /
                                                              rope->original_context_tokens));
  // Zero stands for the default, as null does.
  BATON_ASSIGN_OR_RETURN(const double beta_fast, scaling.Number("beta_fast", 32.0));
  BATON_ASSIGN_OR_RETURN(const double beta_slow, scaling.Number("beta_slow", 1.0));
  rope->beta_fast = static_cast<float>(beta_fast == 0.0 ? 32.0 : beta_fast);
  rope->beta_slow = static_cast<float>(beta_slow == 0.0 ? 1.0 : beta_slow);
  if (!IsPositive(rope->beta_fast) || !IsPositive(rope->beta_slow)) {
    return scaling.Error("beta_fast", "and beta_slow must be positive");
  }
  BATON_ASSIGN_OR_RETURN(rope->truncate, scaling.Boolean("truncate", true));
  if (rope->theta == 1.0f) return scaling.Error("rope_theta", "must not be 1 with yarn");
  BATON_ASSIGN_OR_RETURN(const double mscale, scaling.Number("mscale", 0.0));
  BATON_ASSIGN_OR_RETURN(const double mscale_all, scaling.Number("mscale_all_dim", 0.0));
  const double inferred =
      mscale != 0.0 && mscale_all != 0.0
          ? YarnScale(rope->factor, mscale) / YarnScale(rope->factor, mscale_all)
          : YarnScale(rope->factor, 1.0);
  BATON_ASSIGN_OR_RETURN(rope->attention_factor,
                         scaling.PositiveNumber("attention_factor", inferred));
  return absl::OkStatus();
}

// Of LongRoPE (Ding et al., 2024): one divisor per pair of rotated elements.
absl::StatusOr<std::vector<float>> ReadDivisors(const JsonReader& scaling, const char* key,
                                                uint32_t dim) {
  const nlohmann::json* list = scaling.Find(key);
  if (list == nullptr || !list->is_array() || list->size() != dim / 2) {
    return scaling.Error(key, absl::StrCat("is not a list of ", dim / 2, " numbers"));
  }
  std::vector<float> divisors;
  for (const nlohmann::json& divisor : *list) {
    if (!divisor.is_number() || !IsPositive(divisor.get<float>())) {
      return scaling.Error(key, absl::StrCat("has ", divisor.dump(), ", which is not positive"));
    }
    divisors.push_back(divisor.get<float>());
  }
  return divisors;
}

// The model has divisors for short and for long contexts. One of them holds for every token: keys
// in the cache could not change when a sequence grows.
absl::Status ReadLongRope(const JsonReader& scaling, const RopeDefaults& defaults,
                          RopeConfig* rope) {
  for (const char* key : {"short_mscale", "long_mscale"}) {
    if (scaling.Has(key)) return scaling.Error(key, "is not supported");
  }
  rope->scaling = RopeScaling::kLongRope;
  const double original = rope->original_context_tokens;
  const double extension = defaults.context_tokens / original;
  BATON_ASSIGN_OR_RETURN(
      rope->divisors,
      ReadDivisors(scaling, extension > 1.0 ? "long_factor" : "short_factor", rope->dim));
  BATON_ASSIGN_OR_RETURN(rope->factor, scaling.PositiveNumber("factor", extension));
  double inferred = 1.0;
  if (rope->factor > 1.0f) {
    if (original < 2.0) return scaling.Error("original_max_position_embeddings", "is too small");
    inferred = std::sqrt(1.0 + StableLog(rope->factor) / StableLog(original));
  }
  BATON_ASSIGN_OR_RETURN(rope->attention_factor,
                         scaling.PositiveNumber("attention_factor", inferred));
  return absl::OkStatus();
}

absl::Status ReadLlama3(const JsonReader& scaling, RopeConfig* rope) {
  rope->scaling = RopeScaling::kLlama3;
  BATON_ASSIGN_OR_RETURN(rope->factor, scaling.PositiveNumber("factor"));
  BATON_ASSIGN_OR_RETURN(rope->low_freq_factor, scaling.PositiveNumber("low_freq_factor"));
  BATON_ASSIGN_OR_RETURN(rope->high_freq_factor, scaling.PositiveNumber("high_freq_factor"));
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return scaling.Error("high_freq_factor", "must be above low_freq_factor");
  }
  return absl::OkStatus();
}

// How many elements of a head are rotated: int(head_dim * partial_rotary_factor).
absl::Status ReadDim(const JsonReader& config, const JsonReader& scaling,
                     const RopeDefaults& defaults, RopeConfig* rope) {
  BATON_ASSIGN_OR_RETURN(const double outer, config.Number("partial_rotary_factor", 1.0));
  BATON_ASSIGN_OR_RETURN(const double part, scaling.Number("partial_rotary_factor", outer));
  if (part != 1.0 && !defaults.partial) {
    return scaling.Error("partial_rotary_factor", "other than 1 is not supported");
  }
  if (!(part > 0.0 && part <= 1.0)) {
    return scaling.Error("partial_rotary_factor", "must be above 0 and at most 1");
  }
  rope->dim = static_cast<uint32_t>(defaults.head_dim * part);
  if (rope->dim == 0 || rope->dim % 2 != 0) {
    return scaling.Error("partial_rotary_factor",
                         absl::StrCat("leaves ", rope->dim, " elements, not an even number"));
  }
  return absl::OkStatus();
}

// `scaling` is "rope_scaling", or "rope_parameters" as newer files call it.
absl::Status ReadScaling(const JsonReader& config, const JsonReader& scaling,
                         const RopeDefaults& defaults, RopeConfig* rope) {
  BATON_ASSIGN_OR_RETURN(const std::string old_type, scaling.String("type", "default"));
  BATON_ASSIGN_OR_RETURN(const std::string type, scaling.String("rope_type", old_type));
  BATON_RETURN_IF_ERROR(ReadDim(config, scaling, defaults, rope));
  const char* const original_key = "original_max_position_embeddings";
  BATON_ASSIGN_OR_RETURN(
      const uint32_t outer_original,
      config.Integer(original_key, 1, kContextTokensMax, defaults.context_tokens));
  BATON_ASSIGN_OR_RETURN(const uint32_t original,
                         scaling.Integer(original_key, 1, kContextTokensMax, outer_original));
  if (type == "default") return absl::OkStatus();
  if (type == "linear") {
    rope->scaling = RopeScaling::kLinear;
    BATON_ASSIGN_OR_RETURN(rope->factor, scaling.PositiveNumber("factor"));
    return absl::OkStatus();
  }
  rope->original_context_tokens = original;
  if (type == "llama3") return ReadLlama3(scaling, rope);
  // "su" and, with such lists, "yarn" are what the first Phi-3 called it.
  if (type == "longrope" || type == "su" || (type == "yarn" && scaling.Has("short_factor"))) {
    if (!config.Has(original_key) && !scaling.Has(original_key)) {
      return config.Error(original_key, "is missing");
    }
    return ReadLongRope(scaling, defaults, rope);
  }
  if (type == "yarn") {
    rope->scaling = RopeScaling::kYarn;
    return ReadYarn(scaling, defaults.context_tokens, rope);
  }
  return scaling.Error("rope_type",
                       absl::StrCat("is '", type, "', which is not supported; supported are ",
                                    "default, linear, llama3, longrope, yarn"));
}

// The object that describes rotation. Null if there is none.
absl::StatusOr<const nlohmann::json*> FindRope(const JsonReader& config) {
  const char* key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const nlohmann::json* object = config.Find(key);
  if (object != nullptr && !object->is_object()) return config.Error(key, "is not an object");
  return object;
}

// Whether rotation is described by types of layers.
bool IsByLayer(const nlohmann::json& object) {
  return object.contains("full_attention") || object.contains("sliding_attention");
}

absl::StatusOr<RopeConfig> ReadRopeObject(const JsonReader& config, const nlohmann::json& object,
                                          float theta, const RopeDefaults& defaults) {
  const char* key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!object.is_object()) return config.Error(key, "has what is not an object");
  for (const auto& [name, value] : object.items()) {
    if (value.is_object()) {
      return config.Error(key, absl::StrCat("differs by layer ('", name, "'): not supported"));
    }
  }
  RopeConfig rope;
  const JsonReader scaling(object, absl::StrCat(config.name(), ": ", key));
  BATON_ASSIGN_OR_RETURN(rope.theta, scaling.PositiveNumber("rope_theta", theta));
  BATON_RETURN_IF_ERROR(ReadScaling(config, scaling, defaults, &rope));
  return rope;
}

// The object of one type of layers.
nlohmann::json OfLayers(const nlohmann::json& object, const char* type) {
  const auto found = object.find(type);
  return found == object.end() || found->is_null() ? nlohmann::json::object() : *found;
}

}  // namespace

absl::StatusOr<RopeConfig> ReadRope(const JsonReader& config, const RopeDefaults& defaults) {
  BATON_ASSIGN_OR_RETURN(const nlohmann::json* object, FindRope(config));
  BATON_ASSIGN_OR_RETURN(const float theta, config.PositiveNumber("rope_theta", defaults.theta));
  const nlohmann::json whole = object == nullptr ? nlohmann::json::object() : *object;
  const bool by_layer = defaults.local_theta != 0.0f && IsByLayer(whole);
  return ReadRopeObject(config, by_layer ? OfLayers(whole, "full_attention") : whole, theta,
                        defaults);
}

absl::StatusOr<RopeConfig> ReadLocalRope(const JsonReader& config, const RopeDefaults& defaults) {
  if (defaults.local_theta == 0.0f) return ReadRope(config, defaults);
  BATON_ASSIGN_OR_RETURN(const nlohmann::json* object, FindRope(config));
  BATON_ASSIGN_OR_RETURN(const float theta,
                         config.PositiveNumber("rope_local_base_freq", defaults.local_theta));
  // Before there were types of layers, scaling was of the others.
  const bool by_layer = object != nullptr && IsByLayer(*object);
  return ReadRopeObject(
      config, by_layer ? OfLayers(*object, "sliding_attention") : nlohmann::json::object(), theta,
      defaults);
}

}  // namespace baton
