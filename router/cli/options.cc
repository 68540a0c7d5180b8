#include "router/cli/options.h"

#include <fstream>
#include <sstream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"

ABSL_FLAG(std::string, router, "127.0.0.1:7000", "The router: host:port.");
ABSL_FLAG(std::string, prompt, "", "The prompt's text.");
ABSL_FLAG(std::string, prompt_ids, "", "The prompt as token ids: 1,2,3.");
ABSL_FLAG(std::string, prompt_file, "", "A file with the prompt's text; - reads standard input.");
ABSL_FLAG(
    std::string, generated_ids, "",
    "Tokens that an earlier call with this prompt and seed gave; the answer continues after them.");
ABSL_FLAG(std::string, system, "", "chat: the system message.");
ABSL_FLAG(std::optional<uint32_t>, max_tokens, std::nullopt,
          "Most tokens to generate; absent: to the end of the context.");
ABSL_FLAG(std::optional<uint32_t>, min_tokens, std::nullopt,
          "No stop token before so many tokens.");
ABSL_FLAG(std::optional<float>, temperature, std::nullopt, "0 is greedy. Default 1.");
ABSL_FLAG(std::optional<uint32_t>, top_k, std::nullopt, "Sample among the k likeliest; 0: all.");
ABSL_FLAG(std::optional<float>, top_p, std::nullopt,
          "Sample within this probability mass, (0, 1].");
ABSL_FLAG(std::optional<float>, min_p, std::nullopt,
          "Drop tokens less likely than this times the likeliest, [0, 1].");
ABSL_FLAG(std::optional<float>, repetition_penalty, std::nullopt, "Greater than 0; 1 is none.");
ABSL_FLAG(std::optional<float>, presence_penalty, std::nullopt, "Within [-2, 2]; 0 is none.");
ABSL_FLAG(std::optional<float>, frequency_penalty, std::nullopt, "Within [-2, 2]; 0 is none.");
ABSL_FLAG(std::optional<uint64_t>, seed, std::nullopt,
          "The same seed gives the same tokens. Absent: the router draws one.");
ABSL_FLAG(baton::RepeatedString, stop, {}, "The text ends before this string; may be repeated.");
ABSL_FLAG(bool, ignore_eos, false, "Generate on after an end-of-sequence token.");
ABSL_FLAG(std::optional<uint32_t>, logprobs, std::nullopt,
          "Log-probabilities of each token and of the likeliest N (shown with --json).");
ABSL_FLAG(int32_t, priority, 0, "Higher goes first in the router's queue.");
ABSL_FLAG(std::string, request_id, "", "The call's x-request-id; absent: the router draws one.");
ABSL_FLAG(bool, json, false, "Print one JSON object instead of text.");
ABSL_FLAG(bool, timings, false, "Print what each stage took, on standard error.");
ABSL_FLAG(double, timeout, 0, "Seconds that one call may take; 0: no limit.");

namespace baton::cli {
namespace {

constexpr size_t kPromptFileBytesMax = size_t{64} << 20;

absl::StatusOr<Command> ParseCommand(const std::vector<std::string>& positional) {
  const std::string names = "give one of generate, chat, tokenize, detokenize, status";
  if (positional.empty()) return absl::InvalidArgumentError("no command: " + names);
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

absl::StatusOr<std::string> ReadPromptFile(const std::string& path) {
  std::ostringstream content;
  if (path == "-") {
    std::ifstream input("/dev/stdin", std::ios::binary);
    content << input.rdbuf();
  } else {
    std::ifstream input(path, std::ios::binary);
    if (!input) return absl::InvalidArgumentError("--prompt_file: cannot read " + path);
    content << input.rdbuf();
  }
  if (content.str().size() > kPromptFileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt_file: ", path, " is larger than ", kPromptFileBytesMax, " bytes"));
  }
  return content.str();
}

absl::Status ReadInput(Options* options) {
  const std::string prompt = absl::GetFlag(FLAGS_prompt);
  const std::string ids = absl::GetFlag(FLAGS_prompt_ids);
  const std::string file = absl::GetFlag(FLAGS_prompt_file);
  const int given = (prompt.empty() ? 0 : 1) + (ids.empty() ? 0 : 1) + (file.empty() ? 0 : 1);
  if (given > 1) {
    return absl::InvalidArgumentError("give only one of --prompt, --prompt_ids, --prompt_file");
  }
  if (!prompt.empty()) options->text = prompt;
  if (!file.empty()) {
    BATON_ASSIGN_OR_RETURN(options->text, ReadPromptFile(file));
  }
  if (options->text.has_value()) BATON_RETURN_IF_ERROR(CheckUtf8("the prompt", *options->text));
  if (!ids.empty()) {
    BATON_ASSIGN_OR_RETURN(options->ids, ParseIds(ids));
  }
  options->system = absl::GetFlag(FLAGS_system);
  return CheckUtf8("--system", options->system);
}

// Which input each command takes.
absl::Status CheckInput(const Options& options) {
  switch (options.command) {
    case Command::kGenerate:
      if (options.text.has_value() || !options.ids.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError(
          "generate needs --prompt TEXT, --prompt_ids 1,2,3 or --prompt_file F");
    case Command::kTokenize:
      if (options.text.has_value()) return absl::OkStatus();
      return absl::InvalidArgumentError("tokenize needs --prompt TEXT or --prompt_file F");
    case Command::kDetokenize:
      if (!options.ids.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError("detokenize needs --prompt_ids 1,2,3");
    case Command::kChat:
      if (options.ids.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError(
          "chat takes text: --prompt TEXT, or lines on standard input");
    case Command::kStatus:
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

void ReadSampling(v1::SamplingOptions* sampling) {
  if (const auto value = absl::GetFlag(FLAGS_temperature)) sampling->set_temperature(*value);
  if (const auto value = absl::GetFlag(FLAGS_top_k)) sampling->set_top_k(*value);
  if (const auto value = absl::GetFlag(FLAGS_top_p)) sampling->set_top_p(*value);
  if (const auto value = absl::GetFlag(FLAGS_min_p)) sampling->set_min_p(*value);
  if (const auto value = absl::GetFlag(FLAGS_repetition_penalty)) {
    sampling->set_repetition_penalty(*value);
  }
  if (const auto value = absl::GetFlag(FLAGS_presence_penalty)) {
    sampling->set_presence_penalty(*value);
  }
  if (const auto value = absl::GetFlag(FLAGS_frequency_penalty)) {
    sampling->set_frequency_penalty(*value);
  }
  if (const auto value = absl::GetFlag(FLAGS_seed)) sampling->set_seed(*value);
  if (const auto value = absl::GetFlag(FLAGS_logprobs)) sampling->set_logprobs(*value);
}

absl::Status ReadGenerate(v1::GenerateRequest* request) {
  ReadSampling(request->mutable_sampling());
  if (const auto value = absl::GetFlag(FLAGS_max_tokens)) request->set_max_tokens(*value);
  if (const auto value = absl::GetFlag(FLAGS_min_tokens)) {
    request->mutable_stopping()->set_min_tokens(*value);
  }
  request->mutable_stopping()->set_ignore_eos(absl::GetFlag(FLAGS_ignore_eos));
  for (const std::string& stop : absl::GetFlag(FLAGS_stop).values) {
    BATON_RETURN_IF_ERROR(CheckUtf8("--stop", stop));
    request->add_stop(stop);
  }
  if (const std::string text = absl::GetFlag(FLAGS_generated_ids); !text.empty()) {
    BATON_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ParseIds(text));
    request->mutable_generated_ids()->Add(ids.begin(), ids.end());
  }
  request->set_priority(absl::GetFlag(FLAGS_priority));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Options> OptionsFromFlags(const std::vector<std::string>& positional) {
  Options options;
  BATON_ASSIGN_OR_RETURN(options.command, ParseCommand(positional));
  options.router = absl::GetFlag(FLAGS_router);
  BATON_RETURN_IF_ERROR(ParseHostPort(options.router).status());
  const double timeout = absl::GetFlag(FLAGS_timeout);
  if (!(timeout >= 0 && timeout <= 1e6)) {
    return absl::InvalidArgumentError("--timeout must be within 0 and 1000000 seconds");
  }
  if (timeout > 0) {
    options.timeout = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout));
  }
  options.json = absl::GetFlag(FLAGS_json);
  options.timings = absl::GetFlag(FLAGS_timings);
  options.request_id = absl::GetFlag(FLAGS_request_id);
  BATON_RETURN_IF_ERROR(ReadInput(&options));
  BATON_RETURN_IF_ERROR(CheckInput(options));
  BATON_RETURN_IF_ERROR(ReadGenerate(&options.generate));
  return options;
}

}  // namespace baton::cli
