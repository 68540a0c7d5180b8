// Turns a client's GenerateRequest into what an engine can run: text to tokens, absent options to
// their values, everything checked. After this no worker meets a bad request.
//
// Pure functions over an immutable model; any thread.
#ifndef BATON_COMMON_REQUEST_REQUEST_READER_H_
#define BATON_COMMON_REQUEST_REQUEST_READER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/request/checked_request.h"
#include "common/request/model_profile.h"
#include "proto/inference.pb.h"

namespace baton {

struct RequestLimits {
  // JavaScript and many readers of JSON have no whole numbers beyond.
  static constexpr uint64_t kDrawnSeedMax = (uint64_t{1} << 53) - 1;
  static constexpr uint32_t kLogprobsMax = 20;
  static constexpr int kStopTokenIdsMax = 256;
  static constexpr int kLogitBiasMax = 4096;
  static constexpr int kPriorityMax = 100;  // Either way.
};

// `drawn_seed` is used when the client gave none, as far as kDrawnSeedMax. `model` outlives the
// result. kInvalidArgument: the message begins with the field's name. kUnimplemented: a chat call
// to a model whose chat format is not known.
absl::StatusOr<CheckedRequest> ReadRequest(const v1::GenerateRequest& request,
                                           const ModelProfile& model, uint64_t drawn_seed);

// A text as tokens; `field` names it in errors. What is far beyond the context is refused, and no
// time is spent on the rest of it.
absl::StatusOr<std::vector<TokenId>> TextTokens(const std::string& field, const std::string& text,
                                                bool add_special_tokens, const ModelProfile& model);

// The chat's prompt as tokens.
absl::StatusOr<std::vector<TokenId>> ChatTokens(const v1::Chat& chat, const ModelProfile& model);

// An x-request-id that a client chose: short and printable, so that it can stand in a log.
absl::Status CheckRequestId(const std::string& id);

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_REQUEST_READER_H_
