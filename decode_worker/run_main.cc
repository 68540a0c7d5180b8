// baton_run: the engine in one process, without a network. Prompt in, text out.
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "common/base/clock.h"
#include "common/base/command_line.h"
#include "common/base/secure_random.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/request/answer.h"
#include "common/request/model_profile.h"
#include "common/request/request_flags.h"
#include "common/request/request_reader.h"
#include "common/sampling/sampling_params.h"
#include "common/worker/engine_parts.h"
#include "decode_worker/local_runner.h"

ABSL_FLAG(bool, chat, false,
          "The prompt is a user's message, rendered by the model's chat format.");

namespace baton {
namespace {

// What a client may ask for is what the sampler gives. Here, because the router sees no sampler.
static_assert(RequestLimits::kLogprobsMax == kLogprobsMax);

absl::StatusOr<v1::GenerateRequest> TypedToRequest(const TypedRequest& typed) {
  v1::GenerateRequest request = typed.options;
  const bool chat = absl::GetFlag(FLAGS_chat);
  if (!typed.ids.empty() && !chat) {
    request.mutable_prompt_ids()->mutable_ids()->Add(typed.ids.begin(), typed.ids.end());
    return request;
  }
  if (!typed.text.has_value()) {
    return absl::InvalidArgumentError(
        chat ? "--chat takes text: --prompt TEXT or --prompt_file F"
             : "give one of --prompt TEXT, --prompt_ids 1,2,3 and --prompt_file F");
  }
  if (chat) {
    if (!typed.system.empty()) AddMessage("system", typed.system, request.mutable_chat());
    AddMessage("user", *typed.text, request.mutable_chat());
  } else {
    request.set_prompt(*typed.text);
  }
  return request;
}

v1::Work MakeWork(const CheckedRequest& request) {
  v1::Work work;
  work.set_request(1);
  work.mutable_tokens()->Add(request.tokens.begin(), request.tokens.end());
  work.set_prompt_tokens(request.prompt_tokens);
  work.set_total_tokens_max(request.total_tokens_max);
  *work.mutable_sampling() = request.sampling;
  *work.mutable_stopping() = request.stopping;
  return work;
}

// The answer to one request as it grows; its text goes to standard output unless `quiet`.
class Answering {
 public:
  Answering(CheckedRequest* request, bool quiet) : request_(request), quiet_(quiet), start_(Now()) {
    answer_.started.set_seed(request->sampling.seed());
    answer_.started.set_prompt_tokens(request->prompt_tokens);
    // What an earlier call gave was shown then.
    for (size_t i = request->prompt_tokens; i < request->tokens.size(); ++i) {
      Take(request->text->Feed(request->tokens[i]), /*shown=*/true);
    }
  }

  // False: a stop string has ended the answer.
  bool Take(const v1::Token& token) {
    if (answer_.tokens.empty()) {
      answer_.finished.mutable_timings()->set_first_token_ms(ToMilliseconds(Now() - start_));
    }
    answer_.tokens.push_back(token);
    if (request_->is_stop_token(token.id())) return true;  // The text ends before it.
    Take(request_->text->Feed(token.id()), /*shown=*/false);
    return !ended();
  }
  bool ended() const { return answer_.finished.has_stop_string(); }

  Answer Finish(const LocalResult& result) {
    if (!ended()) Take(request_->text->Flush(), /*shown=*/false);
    v1::Finished& finished = answer_.finished;
    finished.set_reason(ended() ? v1::FINISH_REASON_STOP : result.finished.reason());
    if (finished.reason() == v1::FINISH_REASON_STOP && !ended() && !answer_.tokens.empty()) {
      finished.set_stop_token_id(answer_.tokens.back().id());
    }
    finished.mutable_usage()->set_prompt_tokens(request_->prompt_tokens);
    finished.mutable_usage()->set_cached_tokens(result.admitted.cached_tokens());
    finished.mutable_usage()->set_generated_tokens(static_cast<uint32_t>(answer_.tokens.size()));
    v1::StageTimings& timings = *finished.mutable_timings();
    timings.set_prefill_ms(result.finished.prefill_ms());
    timings.set_decode_ms(result.finished.decode_ms());
    timings.set_total_ms(ToMilliseconds(Now() - start_));
    return std::move(answer_);
  }

 private:
  void Take(const TextStream::Step& step, bool shown) {
    if (step.stop_string.has_value()) answer_.finished.set_stop_string(*step.stop_string);
    if (shown) return;
    answer_.text += step.text;
    if (quiet_) return;
    std::fwrite(step.text.data(), 1, step.text.size(), stdout);
    std::fflush(stdout);
  }

  CheckedRequest* const request_;
  const bool quiet_;
  const Instant start_;
  Answer answer_;
};

absl::Status Run() {
  BATON_ASSIGN_OR_RETURN(const EngineOptions options, EngineOptionsFromFlags());
  BATON_ASSIGN_OR_RETURN(const TypedRequest typed, RequestFromFlags());
  BATON_ASSIGN_OR_RETURN(const v1::GenerateRequest asked, TypedToRequest(typed));
  BATON_ASSIGN_OR_RETURN(const ModelProfile profile, ModelProfile::Load(options.model));
  BATON_ASSIGN_OR_RETURN(CheckedRequest request, ReadRequest(asked, profile, SecureRandom()));
  BATON_ASSIGN_OR_RETURN(EngineParts parts, EngineParts::Create(options));

  request.LimitOpenEnded(parts.pool->counts().total * options.block_tokens);
  Answering answering(&request, /*quiet=*/typed.json);
  LocalRunner runner(&parts);
  LocalResult result;
  if (const std::optional<v1::FinishReason> reason = request.end_reached()) {
    result.finished.set_reason(*reason);
  } else if (!answering.ended()) {
    result = runner.Run(MakeWork(request),
                        [&answering](const v1::Token& token) { return answering.Take(token); });
    BATON_RETURN_IF_ERROR(result.status);
  }
  const Answer answer = answering.Finish(result);
  std::fputs(typed.json ? AnswerJson(answer, asked.sampling().has_logprobs()).c_str() : "\n",
             stdout);
  if (typed.timings) std::fputs(TimingsTable(answer).c_str(), stderr);
  return absl::OkStatus();
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  baton::ParseCommandLine(
      argc, argv,
      {.name = "baton_run",
       .summary = "Runs a model in one process, without a network: prompt in, text out.",
       .usage = "Usage: baton_run --model DIR --prompt TEXT | --prompt_ids 1,2,3 | --prompt_file F "
                "[--chat] [flags]",
       .version = baton::Version()});
  const absl::Status status = baton::Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
