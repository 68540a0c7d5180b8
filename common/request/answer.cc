#include "common/request/answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace baton {
namespace {

using Json = nlohmann::ordered_json;

const char* ReasonName(v1::FinishReason reason) {
  switch (static_cast<int>(reason)) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
  }
  return "unknown";
}

Json LogprobsJson(const std::vector<v1::Token>& tokens) {
  Json list = Json::array();
  for (const v1::Token& token : tokens) {
    Json item = {{"id", token.id()}, {"logprob", token.logprob()}, {"top", Json::array()}};
    for (const v1::TokenLogprob& top : token.top_logprobs()) {
      item["top"].push_back({{"id", top.token()}, {"logprob", top.logprob()}});
    }
    list.push_back(std::move(item));
  }
  return list;
}

Json TimingsJson(const v1::StageTimings& timings) {
  return {{"queue_ms", timings.queue_ms()},
          {"admit_ms", timings.admit_ms()},
          {"prefill_queue_ms", timings.prefill_queue_ms()},
          {"prefill_ms", timings.prefill_ms()},
          {"transfer_tail_ms", timings.transfer_tail_ms()},
          {"decode_ms", timings.decode_ms()},
          {"first_token_ms", timings.first_token_ms()},
          {"total_ms", timings.total_ms()}};
}

}  // namespace

std::string AnswerJson(const Answer& answer, bool with_logprobs) {
  Json ids = Json::array();
  for (const v1::Token& token : answer.tokens) ids.push_back(token.id());
  const v1::Finished& finished = answer.finished;
  Json json = {{"request_id", answer.started.request_id()},
               {"seed", answer.started.seed()},
               {"ids", std::move(ids)},
               {"text", answer.text},
               {"finish_reason", ReasonName(finished.reason())}};
  if (finished.has_stop_string()) json["stop_string"] = finished.stop_string();
  if (finished.has_stop_token_id()) json["stop_token_id"] = finished.stop_token_id();
  if (with_logprobs) json["logprobs"] = LogprobsJson(answer.tokens);
  json["usage"] = {{"prompt_tokens", finished.usage().prompt_tokens()},
                   {"cached_tokens", finished.usage().cached_tokens()},
                   {"generated_tokens", finished.usage().generated_tokens()}};
  json["timings"] = TimingsJson(finished.timings());
  json["prefill_worker"] = finished.prefill_worker();
  json["decode_worker"] = finished.decode_worker();
  json["retries"] = finished.retries();
  // One line; bytes that are no UTF-8 (there should be none) do not make it fail.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string TimingsTable(const Answer& answer) {
  const v1::StageTimings& timings = answer.finished.timings();
  const v1::Usage& usage = answer.finished.usage();
  const auto ms = [](double value) { return absl::StrFormat("%10.2f ms", value); };
  const std::string prefill =
      answer.finished.prefill_worker().empty() ? "local" : answer.finished.prefill_worker();
  const std::string blocks =
      answer.finished.decode_worker().empty() ? "" : "blocks on " + answer.finished.decode_worker();
  std::string per_token;
  if (usage.generated_tokens() > 1 && timings.decode_ms() > 0) {
    per_token =
        absl::StrFormat("%.2f ms a token", timings.decode_ms() / (usage.generated_tokens() - 1));
  }
  return Table({
      {"queue", ms(timings.queue_ms()), "in the router"},
      {"admit", ms(timings.admit_ms()), blocks},
      {"prefill queue", ms(timings.prefill_queue_ms()), ""},
      {"prefill", ms(timings.prefill_ms()),
       absl::StrCat(usage.prompt_tokens(), " tokens, ", usage.cached_tokens(), " cached, ",
                    prefill)},
      {"first token", ms(timings.first_token_ms()), "since the call"},
      {"transfer tail", ms(timings.transfer_tail_ms()), ""},
      {"decode", ms(timings.decode_ms()),
       absl::StrCat(usage.generated_tokens(), " tokens", per_token.empty() ? "" : ", ", per_token)},
      {"total", ms(timings.total_ms()), absl::StrCat(answer.finished.retries(), " retries")},
  });
}

std::string Table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppendFormat(&line, "%-*s  ", static_cast<int>(widths[i]), row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

}  // namespace baton
