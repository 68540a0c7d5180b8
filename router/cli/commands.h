// The commands of `baton`.
#ifndef BATON_ROUTER_CLI_COMMANDS_H_
#define BATON_ROUTER_CLI_COMMANDS_H_

#include <functional>
#include <istream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/inference.pb.h"
#include "router/cli/client.h"
#include "router/cli/options.h"

namespace baton::cli {

// Runs the command: results on standard output as they come, the rest on standard error.
absl::Status RunCommand(const Options& options, Client* client);

// Asks for an answer to each line, all before it being the chat so far. `ask` makes the call for
// `chat`. Where a person types the lines, a call that fails is shown and its line forgotten.
absl::Status Converse(std::istream& lines, bool interactive, v1::Chat* chat,
                      const std::function<absl::StatusOr<std::string>()>& ask);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_COMMANDS_H_
