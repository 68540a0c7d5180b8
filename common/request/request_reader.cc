#include "common/request/request_reader.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/request/model_text.h"

namespace baton {
namespace {

constexpr size_t kRequestIdBytesMax = 128;
// A text that does not fit the context is counted up to so many contexts, to say by how much.
constexpr uint32_t kContextsCounted = 2;

template <typename... Parts>
absl::Status Bad(const std::string& field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

// Passes other errors through, and names the field in those about it.
absl::Status InField(const std::string& field, const absl::Status& status) {
  if (!absl::IsInvalidArgument(status)) return status;
  return Bad(field, status.message());
}

absl::Status CheckIds(const std::string& field, const google::protobuf::RepeatedField<int32_t>& ids,
                      const ModelProfile& model) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= model.vocab_size) {
      return Bad(absl::StrCat(field, "[", i, "]"), "token ", ids[i],
                 " is unknown; the vocabulary has ", model.vocab_size, " tokens");
    }
  }
  return absl::OkStatus();
}

// An option that has to be a number in [low, high]; `low_open`: greater than low.
struct Range {
  const char* field;
  float low;
  float high;
  bool low_open = false;
};

absl::Status CheckRange(const Range& range, bool present, float value) {
  if (!present) return absl::OkStatus();
  const bool above = range.low_open ? value > range.low : value >= range.low;
  if (std::isfinite(value) && above && value <= range.high) return absl::OkStatus();
  const std::string upper = std::isinf(range.high) ? "" : absl::StrCat(" and at most ", range.high);
  return Bad(range.field, value, " is out of range: it must be ",
             range.low_open ? "greater than " : "at least ", range.low, upper);
}

absl::Status CheckSampling(const v1::SamplingOptions& options, const ModelProfile& model) {
  BATON_RETURN_IF_ERROR(CheckRange({"sampling.temperature", 0, INFINITY}, options.has_temperature(),
                                   options.temperature()));
  BATON_RETURN_IF_ERROR(
      CheckRange({"sampling.top_p", 0, 1, true}, options.has_top_p(), options.top_p()));
  BATON_RETURN_IF_ERROR(CheckRange({"sampling.min_p", 0, 1}, options.has_min_p(), options.min_p()));
  BATON_RETURN_IF_ERROR(CheckRange({"sampling.repetition_penalty", 0, INFINITY, true},
                                   options.has_repetition_penalty(), options.repetition_penalty()));
  BATON_RETURN_IF_ERROR(CheckRange({"sampling.presence_penalty", -2, 2},
                                   options.has_presence_penalty(), options.presence_penalty()));
  BATON_RETURN_IF_ERROR(CheckRange({"sampling.frequency_penalty", -2, 2},
                                   options.has_frequency_penalty(), options.frequency_penalty()));
  if (options.logit_bias_size() > RequestLimits::kLogitBiasMax) {
    return Bad("sampling.logit_bias", options.logit_bias_size(), " entries, at most ",
               RequestLimits::kLogitBiasMax, " may be given");
  }
  for (const auto& [token, bias] : options.logit_bias()) {
    if (token < 0 || static_cast<uint32_t>(token) >= model.vocab_size) {
      return Bad("sampling.logit_bias", "token ", token, " is unknown; the vocabulary has ",
                 model.vocab_size, " tokens");
    }
    BATON_RETURN_IF_ERROR(CheckRange({"sampling.logit_bias", -100, 100}, true, bias));
  }
  if (options.logprobs() > RequestLimits::kLogprobsMax) {
    return Bad("sampling.logprobs", options.logprobs(), " is out of range: at most ",
               RequestLimits::kLogprobsMax);
  }
  return absl::OkStatus();
}

absl::Status CheckTextSize(const std::string& field, const std::string& text,
                           const ModelProfile& model) {
  if (text.size() <= model.text_bytes_max) return absl::OkStatus();
  return Bad(field, text.size(), " bytes are too many for a context of ", model.context_tokens,
             " tokens: at most ", model.text_bytes_max, " may be given");
}

absl::StatusOr<std::vector<TokenId>> PromptTokens(const v1::GenerateRequest& request,
                                                  const ModelProfile& model) {
  switch (request.input_case()) {
    case v1::GenerateRequest::kPrompt: {
      if (request.prompt().empty()) return Bad("prompt", "it is empty");
      BATON_ASSIGN_OR_RETURN(
          std::vector<TokenId> tokens,
          TextTokens("prompt", request.prompt(), /*add_special_tokens=*/true, model));
      if (tokens.empty()) return Bad("prompt", "it has no tokens");
      return tokens;
    }
    case v1::GenerateRequest::kPromptIds: {
      const auto& ids = request.prompt_ids().ids();
      if (ids.empty()) return Bad("prompt_ids", "it is empty");
      BATON_RETURN_IF_ERROR(CheckIds("prompt_ids", ids, model));
      return std::vector<TokenId>(ids.begin(), ids.end());
    }
    case v1::GenerateRequest::kChat:
      return ChatTokens(request.chat(), model);
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return Bad("prompt", "one of prompt, prompt_ids and chat must be given");
}

const char* InputField(const v1::GenerateRequest& request) {
  switch (request.input_case()) {
    case v1::GenerateRequest::kPromptIds:
      return "prompt_ids";
    case v1::GenerateRequest::kChat:
      return "chat";
    case v1::GenerateRequest::kPrompt:
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return "prompt";
}

// How many tokens prompt and answer may have together.
absl::StatusOr<uint32_t> TotalTokens(const v1::GenerateRequest& request, size_t prompt_tokens,
                                     const ModelProfile& model) {
  const uint32_t context = model.context_tokens;
  if (prompt_tokens >= context) {
    return Bad(InputField(request), prompt_tokens, " tokens; the context holds ", context,
               ", of which the answer needs at least one");
  }
  if (!request.has_max_tokens()) return context;
  if (request.max_tokens() == 0) return Bad("max_tokens", "it must be at least 1");
  const size_t room = context - prompt_tokens;
  if (request.max_tokens() > room) {
    return Bad("max_tokens", request.max_tokens(), " do not fit: the prompt has ", prompt_tokens,
               " tokens, the context holds ", context, ", so at most ", room, " may be asked for");
  }
  return static_cast<uint32_t>(prompt_tokens) + request.max_tokens();
}

absl::StatusOr<v1::StopOptions> Stopping(const v1::StopOptions& asked, const ModelProfile& model,
                                         uint32_t answer_tokens_max) {
  if (asked.stop_token_ids_size() > RequestLimits::kStopTokenIdsMax) {
    return Bad("stopping.stop_token_ids", asked.stop_token_ids_size(), " ids, at most ",
               RequestLimits::kStopTokenIdsMax, " may be given");
  }
  BATON_RETURN_IF_ERROR(CheckIds("stopping.stop_token_ids", asked.stop_token_ids(), model));
  if (asked.min_tokens() > answer_tokens_max) {
    return Bad("stopping.min_tokens", asked.min_tokens(), " is more than the ", answer_tokens_max,
               " tokens that may be generated");
  }
  v1::StopOptions stopping = asked;
  if (asked.ignore_eos()) return stopping;
  for (const TokenId eos : model.eos_token_ids) {
    const auto& ids = stopping.stop_token_ids();
    if (std::find(ids.begin(), ids.end(), eos) == ids.end()) stopping.add_stop_token_ids(eos);
  }
  return stopping;
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> TextTokens(const std::string& field, const std::string& text,
                                                bool add_special_tokens,
                                                const ModelProfile& model) {
  BATON_RETURN_IF_ERROR(CheckTextSize(field, text, model));
  const size_t tokens_max = size_t{kContextsCounted} * model.context_tokens;
  absl::StatusOr<std::vector<TokenId>> tokens =
      model.tokenizer->Encode(text, add_special_tokens, tokens_max);
  if (absl::IsOutOfRange(tokens.status())) {
    return Bad(field, "more than ", tokens_max, " tokens, but the context has ",
               model.context_tokens);
  }
  if (!tokens.ok()) return InField(field, tokens.status());
  return tokens;
}

absl::StatusOr<std::vector<TokenId>> ChatTokens(const v1::Chat& chat, const ModelProfile& model) {
  if (chat.messages().empty()) return Bad("chat.messages", "it is empty");
  BATON_RETURN_IF_ERROR(model.chat.status());
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({.role = message.role(), .content = message.content()});
  }
  const absl::StatusOr<std::string> text = model.chat->Render(messages);
  if (!text.ok()) return InField("chat", text.status());
  return TextTokens("chat", *text, /*add_special_tokens=*/false, model);
}

absl::Status CheckRequestId(const std::string& id) {
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  if (!id.empty() && id.size() <= kRequestIdBytesMax && printable) return absl::OkStatus();
  return Bad("x-request-id", "it must have 1 to ", kRequestIdBytesMax,
             " printable ASCII characters without spaces");
}

absl::StatusOr<CheckedRequest> ReadRequest(const v1::GenerateRequest& request,
                                           const ModelProfile& model, uint64_t drawn_seed) {
  if (request.has_n() && request.n() != 1) {
    return Bad("n", request.n(), " answers in one call are not supported; only 1 is");
  }
  if (std::abs(static_cast<int64_t>(request.priority())) > RequestLimits::kPriorityMax) {
    return Bad("priority", request.priority(), " is out of range: it must be within -",
               RequestLimits::kPriorityMax, " and ", RequestLimits::kPriorityMax);
  }
  BATON_RETURN_IF_ERROR(CheckSampling(request.sampling(), model));
  CheckedRequest result;
  BATON_ASSIGN_OR_RETURN(result.tokens, PromptTokens(request, model));
  BATON_ASSIGN_OR_RETURN(result.total_tokens_max,
                         TotalTokens(request, result.tokens.size(), model));
  result.open_ended = !request.has_max_tokens();
  result.prompt_tokens = static_cast<uint32_t>(result.tokens.size());
  const uint32_t answer_tokens_max = result.total_tokens_max - result.prompt_tokens;
  BATON_ASSIGN_OR_RETURN(result.stopping, Stopping(request.stopping(), model, answer_tokens_max));
  BATON_RETURN_IF_ERROR(CheckIds("generated_ids", request.generated_ids(), model));
  if (static_cast<size_t>(request.generated_ids_size()) > answer_tokens_max) {
    return Bad("generated_ids", request.generated_ids_size(), " tokens, but only ",
               answer_tokens_max, " may be generated");
  }
  result.tokens.insert(result.tokens.end(), request.generated_ids().begin(),
                       request.generated_ids().end());
  result.sampling = request.sampling();
  if (!result.sampling.has_seed()) {
    result.sampling.set_seed(drawn_seed & RequestLimits::kDrawnSeedMax);
  }
  result.priority = request.priority();
  BATON_ASSIGN_OR_RETURN(result.text,
                         ModelText::Create(model.tokenizer.get(),
                                           {.stops = {request.stop().begin(), request.stop().end()},
                                            .min_tokens = result.stopping.min_tokens(),
                                            .continues_text = !request.has_chat()}));
  return result;
}

}  // namespace baton
