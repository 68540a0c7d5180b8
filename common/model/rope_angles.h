// The frequencies of rotary position embeddings and their context extensions, as Hugging Face
// computes them. Immutable after construction: any thread.
#ifndef BATON_COMMON_MODEL_ROPE_ANGLES_H_
#define BATON_COMMON_MODEL_ROPE_ANGLES_H_

#include <cstdint>
#include <vector>

#include "common/model/model_config.h"

namespace baton {

class RopeAngles {
 public:
  // REQUIRES: config.dim is even. 0: there are no angles.
  explicit RopeAngles(const RopeConfig& config);

  // Radians per position, for each pair of elements: [config.dim / 2].
  const std::vector<float>& frequencies() const { return frequencies_; }

  // What cosines and sines are multiplied with.
  float attention_factor() const { return attention_factor_; }

 private:
  float attention_factor_;
  std::vector<float> frequencies_;
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_ROPE_ANGLES_H_
