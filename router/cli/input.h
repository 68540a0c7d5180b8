// What people type, checked. Pure functions.
#ifndef BATON_ROUTER_CLI_INPUT_H_
#define BATON_ROUTER_CLI_INPUT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"

namespace baton::cli {

// "1,2,3" to ids.
absl::StatusOr<std::vector<TokenId>> ParseIds(const std::string& text);

// Protobuf refuses text that is not UTF-8 without naming the field; so it is checked here.
absl::Status CheckUtf8(const std::string& what, const std::string& text);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_INPUT_H_
