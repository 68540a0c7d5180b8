#include "router/cli/options.h"

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/rpc/message_limit.h"

ABSL_FLAG(std::string, router, "127.0.0.1:7000", "The router: host:port.");
ABSL_FLAG(int32_t, priority, 0, "Higher goes first in the router's queue.");
ABSL_FLAG(std::string, request_id, "", "The call's x-request-id; absent: the router draws one.");
ABSL_FLAG(double, timeout, 0, "Seconds that one call may take; 0: no limit.");

namespace baton::cli {
namespace {

absl::StatusOr<Command> ParseCommand(const std::vector<std::string>& positional) {
  const std::string names = "give one of generate, chat, tokenize, detokenize, status, drain";
  if (positional.empty()) return absl::InvalidArgumentError("no command: " + names);
  if (positional[0] == "drain" && positional.size() == 2) return Command::kDrain;
  if (positional[0] == "drain" && positional.size() == 1) {
    return absl::InvalidArgumentError(
        "drain needs the worker's address as `baton status` shows it: baton drain HOST:PORT");
  }
  if (positional.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument ", positional[1], "; text goes into --prompt"));
  }
  if (positional[0] == "generate") return Command::kGenerate;
  if (positional[0] == "chat") return Command::kChat;
  if (positional[0] == "tokenize") return Command::kTokenize;
  if (positional[0] == "detokenize") return Command::kDetokenize;
  if (positional[0] == "status") return Command::kStatus;
  return absl::InvalidArgumentError(absl::StrCat("unknown command ", positional[0], ": ", names));
}

// Which input each command takes.
absl::Status CheckInput(const Options& options) {
  switch (options.command) {
    case Command::kGenerate:
      if (options.typed.text.has_value() || !options.typed.ids.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError(
          "generate needs --prompt TEXT, --prompt_ids 1,2,3 or --prompt_file F");
    case Command::kTokenize:
      if (options.typed.text.has_value()) return absl::OkStatus();
      return absl::InvalidArgumentError("tokenize needs --prompt TEXT or --prompt_file F");
    case Command::kDetokenize:
      if (!options.typed.ids.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError("detokenize needs --prompt_ids 1,2,3");
    case Command::kChat:
      if (options.typed.ids.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError(
          "chat takes text: --prompt TEXT, or lines on standard input");
    case Command::kStatus:
    case Command::kDrain:
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Options> OptionsFromFlags(const std::vector<std::string>& positional) {
  Options options;
  BATON_ASSIGN_OR_RETURN(options.command, ParseCommand(positional));
  if (options.command == Command::kDrain) options.worker = positional[1];
  options.router = absl::GetFlag(FLAGS_router);
  BATON_RETURN_IF_ERROR(ParseHostPort(options.router).status());
  const double timeout = absl::GetFlag(FLAGS_timeout);
  if (!(timeout >= 0 && timeout <= 1e6)) {
    return absl::InvalidArgumentError("--timeout must be within 0 and 1000000 seconds");
  }
  if (timeout > 0) {
    options.timeout = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout));
  }
  options.message_bytes_max = MessageBytesMaxFromFlags();
  options.request_id = absl::GetFlag(FLAGS_request_id);
  BATON_ASSIGN_OR_RETURN(options.typed, RequestFromFlags());
  options.typed.options.set_priority(absl::GetFlag(FLAGS_priority));
  BATON_RETURN_IF_ERROR(CheckInput(options));
  return options;
}

}  // namespace baton::cli
