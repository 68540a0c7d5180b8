// Reads how a model rotates queries and keys: rope_parameters of config.json, or rope_theta,
// rope_scaling and their like, as files called it before.
#ifndef BATON_COMMON_MODEL_ROPE_READER_H_
#define BATON_COMMON_MODEL_ROPE_READER_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/model/json_file.h"
#include "common/model/model_config.h"

namespace baton {

inline constexpr uint32_t kContextTokensMax = 1u
                                              << 20;  // StableSinCos is exact enough up to there.

// What the rest of the file and the architecture say.
struct RopeDefaults {
  uint32_t head_dim = 0;
  uint32_t context_tokens = 0;  // max_position_embeddings
  float theta = 10000.0f;       // If config.json has none.
  float local_theta = 0.0f;     // The same of layers with a window; 0: they are like the others.
  bool partial = false;         // Whether a part of a head may stay as it is.
};

// Of layers that see everything. `config` is config.json. Errors name the key.
absl::StatusOr<RopeConfig> ReadRope(const JsonReader& config, const RopeDefaults& defaults);
// Of layers with a window.
absl::StatusOr<RopeConfig> ReadLocalRope(const JsonReader& config, const RopeDefaults& defaults);

}  // namespace baton

#endif  // BATON_COMMON_MODEL_ROPE_READER_H_
