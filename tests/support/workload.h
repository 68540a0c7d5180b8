// Random requests from a seed, for comparing deployments with each other.
#ifndef BATON_TESTS_SUPPORT_WORKLOAD_H_
#define BATON_TESTS_SUPPORT_WORKLOAD_H_

#include <cstdint>
#include <vector>

#include "common/base/ids.h"
#include "proto/inference.pb.h"
#include "proto/worker.pb.h"

namespace baton {

struct WorkloadOptions {
  int requests = 200;
  uint64_t seed = 1;
  uint32_t vocab = 256;  // Prompt tokens are drawn from [0, vocab).
  uint32_t prompt_max = 300;
  uint32_t output_max = 40;
};

// Prompts of mixed length, some with a common prefix; greedy and sampled, with every kind of
// option.
std::vector<v1::GenerateRequest> MakeWorkload(const WorkloadOptions& options);

// The same request as a worker gets it. `eos` ends it unless it says ignore_eos.
v1::Work WorkOf(const v1::GenerateRequest& request, const std::vector<TokenId>& eos,
                uint64_t request_id);

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_WORKLOAD_H_
