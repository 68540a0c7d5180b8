// The flags that a request is typed in, alike in every program that takes one.
//
// Main thread, after the command line has been read.
#ifndef BATON_COMMON_REQUEST_REQUEST_FLAGS_H_
#define BATON_COMMON_REQUEST_REQUEST_FLAGS_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "proto/inference.pb.h"

namespace baton {

struct TypedRequest {
  std::optional<std::string> text;  // --prompt, or the content of --prompt_file.
  std::vector<TokenId> ids;         // --prompt_ids.
  std::string system;               // --system.
  v1::GenerateRequest options;      // All the others; its input is not set.
  bool json = false;
  bool timings = false;
};

// At most one of text and ids is there. Only what cannot be a request of any model is refused.
// kInvalidArgument: what is wrong and what to give instead.
absl::StatusOr<TypedRequest> RequestFromFlags();

// "1,2,3" to ids.
absl::StatusOr<std::vector<TokenId>> ParseIds(const std::string& text);

// "5:-2.5,7:1" to biases by id.
absl::StatusOr<std::map<TokenId, float>> ParseLogitBias(const std::string& text);

// Protobuf refuses text that is not UTF-8 without naming the field; so it is checked before.
absl::Status CheckUtf8(const std::string& what, const std::string& text);

void AddMessage(const std::string& role, const std::string& content, v1::Chat* chat);

}  // namespace baton

#endif  // BATON_COMMON_REQUEST_REQUEST_FLAGS_H_
