// The commands of `baton`.
#ifndef BATON_ROUTER_CLI_COMMANDS_H_
#define BATON_ROUTER_CLI_COMMANDS_H_

#include "absl/status/status.h"
#include "router/cli/client.h"
#include "router/cli/options.h"

namespace baton::cli {

// Runs the command: results on standard output as they come, the rest on standard error.
absl::Status RunCommand(const Options& options, Client* client);

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_COMMANDS_H_
