#include "common/request/request_flags.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/tokenizer/utf8.h"

ABSL_FLAG(std::string, prompt, "", "The prompt's text.");
ABSL_FLAG(std::string, prompt_ids, "", "The prompt as token ids: 1,2,3.");
ABSL_FLAG(std::string, prompt_file, "", "A file with the prompt's text; - reads standard input.");
ABSL_FLAG(
    std::string, generated_ids, "",
    "Tokens that an earlier call with this prompt and seed gave; the answer continues after them.");
ABSL_FLAG(std::string, system, "", "In a chat: the system message.");
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
          "The same seed gives the same tokens. Absent: one is drawn.");
ABSL_FLAG(baton::RepeatedString, stop, {}, "The text ends before this string; may be repeated.");
ABSL_FLAG(std::string, logit_bias, "",
          "What to add to the logits of tokens, each within [-100, 100]: ID:BIAS,ID:BIAS.");
ABSL_FLAG(std::string, stop_token_ids, "",
          "Tokens that end the text, beside end-of-sequence: 1,2,3.");
ABSL_FLAG(bool, ignore_eos, false, "Generate on after an end-of-sequence token.");
ABSL_FLAG(std::optional<uint32_t>, logprobs, std::nullopt,
          "Log-probabilities of each token and of the likeliest N (shown with --json).");
ABSL_FLAG(bool, json, false, "Print one JSON object instead of text.");
ABSL_FLAG(bool, timings, false, "Print what each stage took, on standard error.");

namespace baton {
namespace {

constexpr size_t kPromptFileBytesMax = size_t{64} << 20;

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

absl::Status ReadInput(TypedRequest* typed) {
  const std::string prompt = absl::GetFlag(FLAGS_prompt);
  const std::string ids = absl::GetFlag(FLAGS_prompt_ids);
  const std::string file = absl::GetFlag(FLAGS_prompt_file);
  const int given = (prompt.empty() ? 0 : 1) + (ids.empty() ? 0 : 1) + (file.empty() ? 0 : 1);
  if (given > 1) {
    return absl::InvalidArgumentError("give only one of --prompt, --prompt_ids, --prompt_file");
  }
  if (!prompt.empty()) typed->text = prompt;
  if (!file.empty()) {
    BATON_ASSIGN_OR_RETURN(typed->text, ReadPromptFile(file));
  }
  if (typed->text.has_value()) BATON_RETURN_IF_ERROR(CheckUtf8("the prompt", *typed->text));
  if (!ids.empty()) {
    BATON_ASSIGN_OR_RETURN(typed->ids, ParseIds(ids));
  }
  typed->system = absl::GetFlag(FLAGS_system);
  return CheckUtf8("--system", typed->system);
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

absl::Status ReadOptions(v1::GenerateRequest* request) {
  ReadSampling(request->mutable_sampling());
  if (const std::string text = absl::GetFlag(FLAGS_logit_bias); !text.empty()) {
    BATON_ASSIGN_OR_RETURN(const auto biases, ParseLogitBias(text));
    request->mutable_sampling()->mutable_logit_bias()->insert(biases.begin(), biases.end());
  }
  if (const std::string text = absl::GetFlag(FLAGS_stop_token_ids); !text.empty()) {
    BATON_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ParseIds(text));
    request->mutable_stopping()->mutable_stop_token_ids()->Add(ids.begin(), ids.end());
  }
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
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TypedRequest> RequestFromFlags() {
  TypedRequest typed;
  typed.json = absl::GetFlag(FLAGS_json);
  typed.timings = absl::GetFlag(FLAGS_timings);
  BATON_RETURN_IF_ERROR(ReadInput(&typed));
  BATON_RETURN_IF_ERROR(ReadOptions(&typed.options));
  return typed;
}

absl::StatusOr<std::vector<TokenId>> ParseIds(const std::string& text) {
  std::vector<TokenId> ids;
  for (const absl::string_view piece : absl::StrSplit(text, ',')) {
    TokenId id = 0;
    if (!absl::SimpleAtoi(piece, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", piece, "\" is no token id; give numbers separated by commas: 1,2,3"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::map<TokenId, float>> ParseLogitBias(const std::string& text) {
  std::map<TokenId, float> biases;
  for (const absl::string_view piece : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(piece, absl::MaxSplits(':', 1));
    TokenId id = 0;
    float bias = 0;
    if (!absl::SimpleAtoi(parts.first, &id) || !absl::SimpleAtof(parts.second, &bias)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", piece,
          "\" is no token id with a bias; give ID:BIAS, separated by commas: 5:-2.5,7:1"));
    }
    if (!biases.emplace(id, bias).second) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " has two biases"));
    }
  }
  return biases;
}

absl::Status CheckUtf8(const std::string& what, const std::string& text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not UTF-8 at byte ", valid, "; convert it first (iconv -t UTF-8)"));
}

void AddMessage(const std::string& role, const std::string& content, v1::Chat* chat) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->set_content(content);
}

}  // namespace baton
