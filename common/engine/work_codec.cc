#include "common/engine/work_codec.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/wire_status.h"

namespace baton {
namespace {

constexpr uint32_t kRetryAfterMs = 50;

constexpr uint64_t kDeadlineMsMax =
    365ull * 24 * 3600 * 1000;  // Keeps the sum with `now` in range.

absl::Status CheckNumber(const char* field, float value, float low, float high) {
  if (std::isfinite(value) && value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("sampling.", field, " is ", value));
}

// The ranges that types.proto names. The router has checked them; but an engine that computes with
// anything else serves nobody any more.
absl::Status CheckSampling(const SamplingParams& params) {
  BATON_RETURN_IF_ERROR(CheckNumber("temperature", params.temperature, 0, INFINITY));
  BATON_RETURN_IF_ERROR(CheckNumber("top_p", params.top_p, 0, 1));
  BATON_RETURN_IF_ERROR(CheckNumber("min_p", params.min_p, 0, 1));
  BATON_RETURN_IF_ERROR(CheckNumber("repetition_penalty", params.repetition_penalty, 0, INFINITY));
  BATON_RETURN_IF_ERROR(CheckNumber("presence_penalty", params.presence_penalty, -2, 2));
  BATON_RETURN_IF_ERROR(CheckNumber("frequency_penalty", params.frequency_penalty, -2, 2));
  for (const auto& [token, bias] : params.logit_bias) {
    BATON_RETURN_IF_ERROR(CheckNumber("logit_bias", bias, -100, 100));
  }
  return absl::OkStatus();
}

}  // namespace

SamplingParams SamplingFromProto(const v1::SamplingOptions& options) {
  SamplingParams params;
  if (options.has_temperature()) params.temperature = options.temperature();
  if (options.has_top_k()) params.top_k = options.top_k();
  if (options.has_top_p()) params.top_p = options.top_p();
  if (options.has_min_p()) params.min_p = options.min_p();
  if (options.has_repetition_penalty()) params.repetition_penalty = options.repetition_penalty();
  if (options.has_presence_penalty()) params.presence_penalty = options.presence_penalty();
  if (options.has_frequency_penalty()) params.frequency_penalty = options.frequency_penalty();
  for (const auto& [token, bias] : options.logit_bias()) params.logit_bias.push_back({token, bias});
  // A protobuf map has no order; the sum of biases must not depend on it.
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  params.seed = options.seed();
  if (options.has_logprobs()) params.logprobs = std::min(options.logprobs(), kLogprobsMax);
  return params;
}

StopParams StopFromProto(const v1::StopOptions& options) {
  StopParams params;
  params.stop_token_ids.assign(options.stop_token_ids().begin(), options.stop_token_ids().end());
  params.min_tokens = options.min_tokens();
  return params;
}

absl::StatusOr<Sequence> SequenceFromWork(Incarnation router, const v1::Work& work,
                                          const ModelConfig& model, Instant now) {
  const auto count = static_cast<uint32_t>(work.tokens_size());
  if (count == 0) return absl::InvalidArgumentError("work has no tokens");
  if (work.prompt_tokens() == 0 || work.prompt_tokens() > count) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt_tokens is ", work.prompt_tokens(), " of ", count, " tokens"));
  }
  if (work.total_tokens_max() > model.context_tokens || work.total_tokens_max() <= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("total_tokens_max is ", work.total_tokens_max(), " with ", count,
                     " tokens given and a context of ", model.context_tokens));
  }
  for (const TokenId token : work.tokens()) {
    if (token < 0 || static_cast<uint32_t>(token) >= model.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is outside the vocabulary of ", model.vocab_size));
    }
  }
  Sequence sequence;
  sequence.key = {.router = router, .request = RequestId{work.request()}};
  sequence.tokens.assign(work.tokens().begin(), work.tokens().end());
  sequence.tokens.reserve(work.total_tokens_max());
  sequence.prompt_tokens = work.prompt_tokens();
  sequence.total_tokens_max = work.total_tokens_max();
  sequence.sampling = SamplingFromProto(work.sampling());
  BATON_RETURN_IF_ERROR(CheckSampling(sequence.sampling));
  sequence.stop = StopFromProto(work.stopping());
  sequence.priority = work.priority();
  sequence.arrived = now;
  if (work.deadline_ms() != 0) {
    sequence.deadline =
        now + std::chrono::milliseconds(std::min(work.deadline_ms(), kDeadlineMsMax));
  }
  return sequence;
}

v1::Event RejectedEvent(RequestId request, const absl::Status& status) {
  v1::Event event;
  v1::Rejected* rejected = event.mutable_rejected();
  rejected->set_request(Raw(request));
  SetWireStatus(status, rejected);
  if (absl::IsResourceExhausted(status)) rejected->set_retry_after_ms(kRetryAfterMs);
  return event;
}

v1::Token TokenToProto(uint32_t index, const SampledToken& token, const SamplingParams& sampling) {
  v1::Token proto;
  proto.set_index(index);
  proto.set_id(token.id);
  if (sampling.logprobs.has_value()) {
    proto.set_logprob(token.logprob);
    for (const auto& [id, logprob] : token.top_logprobs) {
      v1::TokenLogprob* top = proto.add_top_logprobs();
      top->set_token(id);
      top->set_logprob(logprob);
    }
  }
  return proto;
}

std::optional<v1::FinishReason> FinishOf(const Sequence& sequence) {
  BATON_CHECK(sequence.generated() > 0);
  const std::vector<TokenId>& stops = sequence.stop.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), sequence.tokens.back()) != stops.end()) {
    return v1::FINISH_REASON_STOP;
  }
  if (sequence.token_count() >= sequence.total_tokens_max) return v1::FINISH_REASON_LENGTH;
  return std::nullopt;
}

}  // namespace baton
