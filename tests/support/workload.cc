#include "tests/support/workload.h"

#include <random>

namespace baton {
namespace {

using Random = std::mt19937_64;

uint32_t Below(Random& random, uint32_t bound) { return static_cast<uint32_t>(random() % bound); }

void DrawSampling(Random& random, v1::SamplingOptions* sampling) {
  sampling->set_seed(random());
  if (Below(random, 4) == 0) {
    sampling->set_temperature(0);
    return;
  }
  sampling->set_temperature(0.3f + 0.1f * static_cast<float>(Below(random, 12)));
  if (Below(random, 2) == 0) sampling->set_top_k(1 + Below(random, 50));
  if (Below(random, 2) == 0)
    sampling->set_top_p(0.5f + 0.05f * static_cast<float>(Below(random, 10)));
  if (Below(random, 4) == 0) sampling->set_min_p(0.05f);
  if (Below(random, 4) == 0) sampling->set_repetition_penalty(1.2f);
  if (Below(random, 4) == 0) sampling->set_presence_penalty(0.5f);
  if (Below(random, 4) == 0) sampling->set_frequency_penalty(0.3f);
  if (Below(random, 6) == 0) (*sampling->mutable_logit_bias())[5] = 3.0f;
  if (Below(random, 6) == 0) sampling->set_logprobs(3);
}

}  // namespace

std::vector<v1::GenerateRequest> MakeWorkload(const WorkloadOptions& options) {
  Random random(options.seed);
  std::vector<int32_t> common_prefix;
  for (int i = 0; i < 64; ++i) {
    common_prefix.push_back(static_cast<int32_t>(Below(random, options.vocab)));
  }
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < options.requests; ++i) {
    v1::GenerateRequest request;
    auto* ids = request.mutable_prompt_ids()->mutable_ids();
    const uint32_t length = 1 + Below(random, options.prompt_max);
    if (Below(random, 3) == 0) ids->Add(common_prefix.begin(), common_prefix.end());
    while (static_cast<uint32_t>(ids->size()) < length) {
      ids->Add(static_cast<int32_t>(Below(random, options.vocab)));
    }
    request.set_max_tokens(1 + Below(random, options.output_max));
    DrawSampling(random, request.mutable_sampling());
    request.mutable_stopping()->set_ignore_eos(Below(random, 2) == 0);
    requests.push_back(std::move(request));
  }
  return requests;
}

v1::Work WorkOf(const v1::GenerateRequest& request, const std::vector<TokenId>& eos,
                uint64_t request_id) {
  v1::Work work;
  work.set_request(request_id);
  *work.mutable_tokens() = request.prompt_ids().ids();
  work.set_prompt_tokens(static_cast<uint32_t>(work.tokens_size()));
  work.set_total_tokens_max(work.prompt_tokens() + request.max_tokens());
  *work.mutable_sampling() = request.sampling();
  *work.mutable_stopping() = request.stopping();
  if (!request.stopping().ignore_eos()) {
    for (const TokenId id : eos) work.mutable_stopping()->add_stop_token_ids(id);
  }
  return work;
}

}  // namespace baton
