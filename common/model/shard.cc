#include "common/model/shard.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

absl::Status Divide(uint32_t count, const char* what, uint32_t* number) {
  if (*number % count != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tp ", count, " does not divide the model's ", *number, " ", what));
  }
  *number /= count;
  return absl::OkStatus();
}

bool SomeLayerIsDense(const ModelConfig& config) {
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    if (!config.HasExperts(layer)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<ModelConfig> ConfigOfShard(const ModelConfig& config, uint32_t count) {
  ModelConfig shard = config;
  if (count == 0) return absl::InvalidArgumentError("--tp must not be 0");
  BATON_RETURN_IF_ERROR(Divide(count, "KV heads", &shard.kv_heads));
  BATON_RETURN_IF_ERROR(Divide(count, "heads", &shard.heads));
  if (SomeLayerIsDense(config)) {
    BATON_RETURN_IF_ERROR(Divide(count, "inner rows of the networks", &shard.intermediate_size));
  }
  ExpertsConfig& experts = shard.experts;
  if (experts.count == 0) return shard;
  BATON_RETURN_IF_ERROR(Divide(count, "inner rows of the experts", &experts.intermediate_size));
  BATON_RETURN_IF_ERROR(
      Divide(count, "inner rows of the shared expert", &experts.shared_intermediate_size));
  return shard;
}

}  // namespace baton
