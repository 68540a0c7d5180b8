// Steps that a device computes for nobody, so that fewer steps of clients pay for what happens
// once: kernels that are loaded, products of decode steps that are tried out, steps that are
// recorded. See "A step on a GPU" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_MODEL_WARM_UP_H_
#define BATON_COMMON_MODEL_WARM_UP_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/kv_cache/kv_arena.h"
#include "common/model/model.h"

namespace baton {

struct WarmUpOptions {
  uint32_t chunk_tokens = 0;   // Of the longest chunk of a prompt. 0: none is to come.
  uint32_t sequences_max = 0;  // Of a decode step. 0: none is to come.
};

// Computes a chunk, and decode steps of each size; of short sequences: what longer ones record is
// left to them. Returns the number of steps: none on a CPU, where nothing happens once.
//
// Overwrites blocks of the cache. REQUIRES: none of them is anybody's; options of which the model
// can compute a step. Errors: as of Model::ForwardAndSample.
absl::StatusOr<uint32_t> WarmUp(Model& model, KvArena& cache, const WarmUpOptions& options);

}  // namespace baton

#endif  // BATON_COMMON_MODEL_WARM_UP_H_
