// Turns a client's GenerateRequest into what the core takes: text to tokens, absent options to
// their values, everything checked. After this no worker meets a bad request.
//
// Pure functions over an immutable model; any thread.
#ifndef BATON_ROUTER_REQUEST_READER_H_
#define BATON_ROUTER_REQUEST_READER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/inference.pb.h"
#include "router/request_table.h"
#include "router/router_model.h"

namespace baton {

struct RequestLimits {
  static constexpr uint32_t kLogprobsMax = 20;
  static constexpr int kStopTokenIdsMax = 256;
  static constexpr int kLogitBiasMax = 4096;
  static constexpr int kPriorityMax = 100;  // Either way.
};

// `drawn_seed` is used when the client gave none. Fills everything but id, client_request_id,
// received and deadline. kInvalidArgument: the message begins with the field's name.
// kUnimplemented: a chat call to a model whose chat format is not known.
absl::StatusOr<NewRequest> ReadRequest(const v1::GenerateRequest& request, const RouterModel& model,
                                       uint64_t drawn_seed);

// The chat's prompt as tokens.
absl::StatusOr<std::vector<TokenId>> ChatTokens(const v1::Chat& chat, const RouterModel& model);

// An x-request-id that a client chose: short and printable, so that it can stand in a log.
absl::Status CheckRequestId(const std::string& id);

}  // namespace baton

#endif  // BATON_ROUTER_REQUEST_READER_H_
