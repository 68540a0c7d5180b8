// The command line of `baton`, checked and turned into requests.
#ifndef BATON_ROUTER_CLI_OPTIONS_H_
#define BATON_ROUTER_CLI_OPTIONS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/request/request_flags.h"
#include "router/cli/client.h"

namespace baton::cli {

enum class Command { kGenerate, kChat, kTokenize, kDetokenize, kStatus, kDrain };

struct Options {
  Command command = Command::kGenerate;
  ClientOptions client;
  std::string request_id;  // Empty: the router draws one.
  TypedRequest typed;      // With an input that the command can take.
  std::string worker;      // The one to drain: host:port.
};

// From the flags and the positional arguments. kInvalidArgument: what is wrong and what to give
// instead.
absl::StatusOr<Options> OptionsFromFlags(const std::vector<std::string>& positional);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_OPTIONS_H_
