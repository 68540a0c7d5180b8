// Between the sessions' messages and the engine's values. Pure.
#ifndef BATON_COMMON_ENGINE_WORK_CODEC_H_
#define BATON_COMMON_ENGINE_WORK_CODEC_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/engine/sequence.h"
#include "common/model/model_config.h"
#include "common/sampling/sampler.h"
#include "proto/types.pb.h"
#include "proto/worker.pb.h"

namespace baton {

SamplingParams SamplingFromProto(const v1::SamplingOptions& options);
StopParams StopFromProto(const v1::StopOptions& options);

// A sequence with nothing computed. kInvalidArgument names what is wrong with the work: a worker
// trusts its router, but neither a bad token id nor a bad option may become a bad memory access.
absl::StatusOr<Sequence> SequenceFromWork(Incarnation router, const v1::Work& work,
                                          const ModelConfig& model, Instant now);

// A refusal of new work. Whoever has no room says when to ask again.
v1::Event RejectedEvent(RequestId request, const absl::Status& status);

// The token as the router and the client see it. `index` counts generated tokens from 0.
v1::Token TokenToProto(uint32_t index, const SampledToken& token, const SamplingParams& sampling);

// Why `sequence` ends with the token that was appended last, if it does.
std::optional<v1::FinishReason> FinishOf(const Sequence& sequence);

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_WORK_CODEC_H_
