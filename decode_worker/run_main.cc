// baton_run: the engine in one process, without a network. Prompt in, text out.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/command_line.h"
#include "common/base/secure_random.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/stop_strings.h"
#include "common/tokenizer/tokenizer.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"

ABSL_FLAG(std::optional<std::string>, prompt, std::nullopt, "The prompt's text.");
ABSL_FLAG(std::string, prompt_ids, "", "The prompt as token ids: 1,2,3.");
ABSL_FLAG(std::string, prompt_file, "", "A file with the prompt's text.");
ABSL_FLAG(std::optional<uint32_t>, max_tokens, std::nullopt,
          "Most tokens to generate; absent: to the end of the context.");
ABSL_FLAG(float, temperature, 1.0f, "0 is greedy.");
ABSL_FLAG(uint32_t, top_k, 0, "Sample among the k likeliest; 0: all.");
ABSL_FLAG(float, top_p, 1.0f, "Sample within this probability mass, (0, 1].");
ABSL_FLAG(float, min_p, 0.0f, "Drop tokens less likely than this times the likeliest, [0, 1].");
ABSL_FLAG(float, repetition_penalty, 1.0f, "Greater than 0; 1 is none.");
ABSL_FLAG(float, presence_penalty, 0.0f, "Within [-2, 2]; 0 is none.");
ABSL_FLAG(float, frequency_penalty, 0.0f, "Within [-2, 2]; 0 is none.");
ABSL_FLAG(std::optional<uint64_t>, seed, std::nullopt,
          "The same seed gives the same tokens. Absent: one is drawn.");
ABSL_FLAG(baton::RepeatedString, stop, {}, "The text ends before this string; may be repeated.");
ABSL_FLAG(bool, ignore_eos, false, "Generate on after an end-of-sequence token.");
ABSL_FLAG(std::optional<uint32_t>, logprobs, std::nullopt,
          "Log-probabilities of each token and of the likeliest N (with --json).");
ABSL_FLAG(bool, json, false, "Print one JSON object instead of text.");

namespace baton {
namespace {

using Json = nlohmann::ordered_json;

absl::Status CheckFlag(bool good, const std::string& flag, const std::string& rule) {
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " must be ", rule));
}

absl::StatusOr<v1::SamplingOptions> SamplingFromFlags() {
  v1::SamplingOptions sampling;
  sampling.set_temperature(absl::GetFlag(FLAGS_temperature));
  sampling.set_top_k(absl::GetFlag(FLAGS_top_k));
  sampling.set_top_p(absl::GetFlag(FLAGS_top_p));
  sampling.set_min_p(absl::GetFlag(FLAGS_min_p));
  sampling.set_repetition_penalty(absl::GetFlag(FLAGS_repetition_penalty));
  sampling.set_presence_penalty(absl::GetFlag(FLAGS_presence_penalty));
  sampling.set_frequency_penalty(absl::GetFlag(FLAGS_frequency_penalty));
  const std::optional<uint64_t> seed = absl::GetFlag(FLAGS_seed);
  sampling.set_seed(seed.has_value() ? *seed : SecureRandom());
  if (const auto logprobs = absl::GetFlag(FLAGS_logprobs)) sampling.set_logprobs(*logprobs);
  // Written so that a NaN is refused too.
  const auto within = [](float value, float least, float most) {
    return value >= least && value <= most;
  };
  BATON_RETURN_IF_ERROR(
      CheckFlag(within(sampling.temperature(), 0, 100), "temperature", "in [0, 100]"));
  BATON_RETURN_IF_ERROR(
      CheckFlag(sampling.top_p() > 0 && sampling.top_p() <= 1, "top_p", "in (0, 1]"));
  BATON_RETURN_IF_ERROR(CheckFlag(within(sampling.min_p(), 0, 1), "min_p", "in [0, 1]"));
  BATON_RETURN_IF_ERROR(
      CheckFlag(sampling.repetition_penalty() > 0 && sampling.repetition_penalty() <= 100,
                "repetition_penalty", "in (0, 100]"));
  BATON_RETURN_IF_ERROR(
      CheckFlag(within(sampling.presence_penalty(), -2, 2), "presence_penalty", "in [-2, 2]"));
  BATON_RETURN_IF_ERROR(
      CheckFlag(within(sampling.frequency_penalty(), -2, 2), "frequency_penalty", "in [-2, 2]"));
  BATON_RETURN_IF_ERROR(CheckFlag(sampling.logprobs() <= kLogprobsMax, "logprobs", "at most 20"));
  return sampling;
}

absl::StatusOr<std::vector<TokenId>> PromptFromFlags(const Tokenizer& tokenizer) {
  const std::optional<std::string> prompt = absl::GetFlag(FLAGS_prompt);
  const std::string ids = absl::GetFlag(FLAGS_prompt_ids);
  const std::string file = absl::GetFlag(FLAGS_prompt_file);
  if ((prompt.has_value() ? 1 : 0) + (ids.empty() ? 0 : 1) + (file.empty() ? 0 : 1) != 1) {
    return absl::InvalidArgumentError(
        "give one of --prompt TEXT, --prompt_ids 1,2,3 and --prompt_file F");
  }
  std::vector<TokenId> tokens;
  if (!ids.empty()) {
    for (const absl::string_view part : absl::StrSplit(ids, ',')) {
      TokenId id = 0;
      if (!absl::SimpleAtoi(part, &id)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--prompt_ids: '", part, "' is no token id"));
      }
      tokens.push_back(id);
    }
    return tokens;
  }
  std::string text = prompt.value_or("");
  if (!file.empty()) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) return absl::InvalidArgumentError("--prompt_file: cannot read " + file);
    text.assign(std::istreambuf_iterator<char>(stream), {});
  }
  BATON_ASSIGN_OR_RETURN(tokens, tokenizer.Encode(text, /*add_special_tokens=*/true));
  if (tokens.empty()) return absl::InvalidArgumentError("--prompt is empty");
  return tokens;
}

absl::StatusOr<v1::Work> WorkFromFlags(const Tokenizer& tokenizer, const ModelConfig& model) {
  v1::Work work;
  work.set_request(1);
  BATON_ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, PromptFromFlags(tokenizer));
  work.mutable_tokens()->Assign(prompt.begin(), prompt.end());
  work.set_prompt_tokens(static_cast<uint32_t>(prompt.size()));
  if (prompt.size() >= model.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt.size(),
                                                   " tokens; the model's context is ",
                                                   model.context_tokens));
  }
  const uint32_t room = model.context_tokens - work.prompt_tokens();
  const uint32_t max_tokens = absl::GetFlag(FLAGS_max_tokens).value_or(room);
  if (max_tokens == 0 || max_tokens > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max_tokens must be between 1 and ", room, " for this prompt"));
  }
  work.set_total_tokens_max(work.prompt_tokens() + max_tokens);
  BATON_ASSIGN_OR_RETURN(*work.mutable_sampling(), SamplingFromFlags());
  if (!absl::GetFlag(FLAGS_ignore_eos)) {
    for (const TokenId eos : model.eos_token_ids) work.mutable_stopping()->add_stop_token_ids(eos);
  }
  return work;
}

Json ResultJson(const LocalResult& result, const v1::Work& work, const std::string& text) {
  Json json;
  json["ids"] = Json::array();
  for (const v1::Token& token : result.tokens) json["ids"].push_back(token.id());
  json["text"] = text;
  const bool stopped = result.cancelled || result.finished.reason() == v1::FINISH_REASON_STOP;
  json["finish_reason"] = stopped ? "stop" : "length";
  json["seed"] = work.sampling().seed();
  if (work.sampling().has_logprobs()) {
    json["logprobs"] = Json::array();
    for (const v1::Token& token : result.tokens) {
      Json item = {{"id", token.id()}, {"logprob", token.logprob()}, {"top", Json::array()}};
      for (const v1::TokenLogprob& top : token.top_logprobs()) {
        item["top"].push_back({{"id", top.token()}, {"logprob", top.logprob()}});
      }
      json["logprobs"].push_back(std::move(item));
    }
  }
  json["usage"] = {{"prompt_tokens", work.prompt_tokens()},
                   {"cached_tokens", result.admitted.cached_tokens()},
                   {"generated_tokens", result.tokens.size()}};
  json["timings"] = {{"prefill_ms", result.finished.prefill_ms()},
                     {"decode_ms", result.finished.decode_ms()}};
  return json;
}

absl::Status Run() {
  BATON_ASSIGN_OR_RETURN(const EngineOptions options, EngineOptionsFromFlags());
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                         Tokenizer::Load(options.model));
  BATON_ASSIGN_OR_RETURN(StopStringMatcher stops,
                         StopStringMatcher::Create(absl::GetFlag(FLAGS_stop).values));
  BATON_ASSIGN_OR_RETURN(EngineParts parts, EngineParts::Create(options));
  BATON_ASSIGN_OR_RETURN(const v1::Work work, WorkFromFlags(*tokenizer, parts.model->config()));

  const bool json = absl::GetFlag(FLAGS_json);
  std::string text;
  const auto show = [&](const std::string& piece) {
    text += piece;
    if (json) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  IncrementalDecoder decoder(tokenizer.get(), {.continues_text = true});
  LocalRunner runner(&parts);
  const LocalResult result = runner.Run(work, [&](const v1::Token& token) {
    show(stops.Push(decoder.Push(token.id())));
    return !stops.stopped();
  });
  BATON_RETURN_IF_ERROR(result.status);
  if (!stops.stopped()) show(stops.Push(decoder.Flush()));
  if (!stops.stopped()) show(stops.Flush());
  if (json) {
    std::printf("%s\n", ResultJson(result, work, text)
                            .dump(-1, ' ', false, Json::error_handler_t::replace)
                            .c_str());
  } else {
    std::printf("\n");
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_run",
       .summary = "Runs a model in one process, without a network: prompt in, text out.",
       .usage = "Usage: baton_run --model DIR --prompt TEXT [flags]",
       .version = baton::Version()});
  const absl::Status status = baton::Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
