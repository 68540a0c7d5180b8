#include "router/cli/options.h"

#include <cstdlib>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/rpc/message_limit.h"
#include "common/rpc/small_file.h"
#include "router/api_keys.h"

ABSL_FLAG(std::string, router, "127.0.0.1:7000", "The router: host:port.");
ABSL_FLAG(int32_t, priority, 0, "Higher goes first in the router's queue.");
ABSL_FLAG(std::string, request_id, "", "The call's x-request-id; absent: the router draws one.");
ABSL_FLAG(double, timeout, 0, "Seconds that one call may take; 0: no limit.");
ABSL_FLAG(std::string, tls_ca, "",
          "PEM file of authorities, one of which must have signed the router's certificate; the "
          "system's are in /etc/ssl/certs/ca-certificates.crt. Not given: plaintext.");
ABSL_FLAG(std::string, tls_client_cert, "",
          "PEM file: the certificate shown to a router that wants one. With --tls_client_key.");
ABSL_FLAG(std::string, tls_client_key, "", "PEM file: the private key of --tls_client_cert.");
ABSL_FLAG(std::string, tls_server_name, "",
          "The name that the router's certificate must have. Empty: the host of --router.");
ABSL_FLAG(std::string, api_key_file, "",
          "File that holds the API key for the router, and nothing else. Without it, the key is "
          "taken from the environment variable BATON_API_KEY, if that is set.");
ABSL_FLAG(bool, api_key_in_clear, false,
          "Send the API key without TLS, to a router that is not on this machine.");

namespace baton::cli {
namespace {

constexpr char kApiKeyVariable[] = "BATON_API_KEY";

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

absl::StatusOr<std::shared_ptr<TlsFiles>> RouterTls() {
  return LoadClientTls({.authorities = {"tls_ca", absl::GetFlag(FLAGS_tls_ca)},
                        .certificate = {"tls_client_cert", absl::GetFlag(FLAGS_tls_client_cert)},
                        .key = {"tls_client_key", absl::GetFlag(FLAGS_tls_client_key)},
                        .server_name = {"tls_server_name", absl::GetFlag(FLAGS_tls_server_name)}});
}

// Empty where there is none.
absl::StatusOr<std::string> ApiKey() {
  const std::string file = absl::GetFlag(FLAGS_api_key_file);
  const char* variable = std::getenv(kApiKeyVariable);
  std::string key = variable == nullptr ? "" : variable;
  std::string source = kApiKeyVariable;
  if (!file.empty()) {
    BATON_ASSIGN_OR_RETURN(key, ReadSecretFile(file));
    key = std::string(absl::StripAsciiWhitespace(key));
    source = file;
  }
  if (key.empty() && file.empty()) return key;
  if (const absl::Status status = CheckApiKey(key); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", std::string(status.message())));
  }
  return key;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" ||
         (host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string::npos);
}

// A key is not to be read by whoever sees the network.
absl::Status CheckSecrecy(const ClientOptions& client) {
  if (client.api_key.empty() || client.channel.tls != nullptr) return absl::OkStatus();
  if (absl::GetFlag(FLAGS_api_key_in_clear)) return absl::OkStatus();
  BATON_ASSIGN_OR_RETURN(const HostPort router, ParseHostPort(client.router));
  if (IsLoopback(router.host)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the API key would go to ", client.router,
                   " in clear text: give --tls_ca FILE, or --api_key_in_clear if that is meant"));
}

}  // namespace

absl::StatusOr<Options> OptionsFromFlags(const std::vector<std::string>& positional) {
  Options options;
  BATON_ASSIGN_OR_RETURN(options.command, ParseCommand(positional));
  if (options.command == Command::kDrain) options.worker = positional[1];
  options.client.router = absl::GetFlag(FLAGS_router);
  BATON_RETURN_IF_ERROR(ParseHostPort(options.client.router).status());
  const double timeout = absl::GetFlag(FLAGS_timeout);
  if (!(timeout >= 0 && timeout <= 1e6)) {
    return absl::InvalidArgumentError("--timeout must be within 0 and 1000000 seconds");
  }
  if (timeout > 0) {
    options.client.timeout =
        std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout));
  }
  options.client.channel.message_bytes_max = MessageBytesMaxFromFlags();
  BATON_ASSIGN_OR_RETURN(options.client.channel.tls, RouterTls());
  options.client.channel.tls_server_name = absl::GetFlag(FLAGS_tls_server_name);
  BATON_ASSIGN_OR_RETURN(options.client.api_key, ApiKey());
  BATON_RETURN_IF_ERROR(CheckSecrecy(options.client));
  options.request_id = absl::GetFlag(FLAGS_request_id);
  BATON_ASSIGN_OR_RETURN(options.typed, RequestFromFlags());
  options.typed.options.set_priority(absl::GetFlag(FLAGS_priority));
  BATON_RETURN_IF_ERROR(CheckInput(options));
  return options;
}

}  // namespace baton::cli
