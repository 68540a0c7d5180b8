#include "router/cli/commands.h"

#include <unistd.h>

#include <cstdio>
#include <functional>
#include <iostream>
#include <string>

#include "common/base/status_macros.h"
#include "router/cli/output.h"

namespace baton::cli {
namespace {

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// Makes the call and shows it; returns the answer's text.
absl::StatusOr<std::string> Ask(const Options& options, const v1::GenerateRequest& request,
                                Client* client) {
  bool printed = false;
  const auto on_text = [&options, &printed](const std::string& text) {
    if (options.typed.json || text.empty()) return;
    Print(text);
    printed = true;
  };
  const absl::StatusOr<Answer> answer = client->Generate(request, options.request_id, on_text);
  if (printed) Print("\n");
  BATON_RETURN_IF_ERROR(answer.status());
  if (options.typed.json) Print(AnswerJson(*answer, request.sampling().has_logprobs()));
  if (options.typed.timings) std::fputs(TimingsTable(*answer).c_str(), stderr);
  return answer->text;
}

absl::Status Generate(const Options& options, Client* client) {
  v1::GenerateRequest request = options.typed.options;
  if (options.typed.text.has_value()) {
    request.set_prompt(*options.typed.text);
  } else {
    request.mutable_prompt_ids()->mutable_ids()->Add(options.typed.ids.begin(),
                                                     options.typed.ids.end());
  }
  return Ask(options, request, client).status();
}

absl::Status Chat(const Options& options, Client* client) {
  v1::GenerateRequest request = options.typed.options;
  v1::Chat* chat = request.mutable_chat();
  if (!options.typed.system.empty()) AddMessage("system", options.typed.system, chat);
  if (options.typed.text.has_value()) {
    AddMessage("user", *options.typed.text, chat);
    return Ask(options, request, client).status();
  }
  return Converse(std::cin, isatty(STDIN_FILENO) == 1, chat,
                  [&] { return Ask(options, request, client); });
}

absl::Status Tokenize(const Options& options, Client* client) {
  v1::TokenizeRequest request;
  request.set_text(*options.typed.text);
  BATON_ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client->Tokenize(request));
  std::string ids;
  for (const TokenId id : response.ids()) {
    if (!ids.empty()) ids += ",";
    ids += std::to_string(id);
  }
  Print(options.typed.json ? "{\"ids\":[" + ids + "]}\n" : ids + "\n");
  return absl::OkStatus();
}

absl::Status Detokenize(const Options& options, Client* client) {
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(options.typed.ids.begin(), options.typed.ids.end());
  BATON_ASSIGN_OR_RETURN(const v1::DetokenizeResponse response, client->Detokenize(request));
  Print(options.typed.json ? TextJson(response.text()) : response.text() + "\n");
  return absl::OkStatus();
}

absl::Status Status(const Options& options, Client* client) {
  BATON_ASSIGN_OR_RETURN(const v1::GetClusterResponse cluster, client->GetCluster());
  BATON_ASSIGN_OR_RETURN(const v1::GetModelResponse model, client->GetModel());
  Print(options.typed.json ? ClusterJson(cluster, model.model())
                           : ClusterTable(cluster, model.model()));
  return absl::OkStatus();
}

// Waits until that process has left the router, and shows how far it is. Returns what became of it.
absl::StatusOr<std::string> AwaitEndOfDrain(const std::string& worker, uint64_t incarnation,
                                            Client* client) {
  using State = DrainProgress::State;
  constexpr Duration kInterval = std::chrono::milliseconds(100);
  constexpr Duration kSilenceMax = std::chrono::seconds(15);  // A session comes back sooner.
  DrainProgress shown;
  for (Instant heard = Now(); Now() - heard < kSilenceMax;) {
    if (!client->Pause(kInterval)) return absl::CancelledError("the worker drains on");
    const absl::StatusOr<v1::GetClusterResponse> cluster = client->GetCluster();
    if (absl::IsUnavailable(cluster.status())) {  // The router may be starting again.
      shown.line = std::string(cluster.status().message());
      continue;
    }
    BATON_RETURN_IF_ERROR(cluster.status());
    const DrainProgress progress = ProgressOfDrain(*cluster, worker, incarnation);
    if (progress.state == State::kForgotten) return absl::AbortedError(progress.line);
    // Once it has drained, being gone is its end.
    const bool drained = shown.state == State::kDrained || progress.state == State::kDrained;
    if (drained && !progress.there) return worker + " has drained and left";
    if (progress.state == State::kGone) return progress.line;
    if (progress.line != shown.line) std::fprintf(stderr, "%s\n", progress.line.c_str());
    shown = progress;
    if (progress.there) heard = Now();
  }
  return absl::UnavailableError(shown.line + "; see `baton status`");
}

absl::Status Drain(const Options& options, Client* client) {
  BATON_ASSIGN_OR_RETURN(const v1::DrainWorkerResponse told, client->DrainWorker(options.worker));
  BATON_ASSIGN_OR_RETURN(const std::string end,
                         AwaitEndOfDrain(options.worker, told.incarnation(), client));
  Print(end + "\n");
  return absl::OkStatus();
}

}  // namespace

namespace {

// On failure the chat is as before.
absl::Status TakeTurn(const std::string& line, v1::Chat* chat,
                      const std::function<absl::StatusOr<std::string>()>& ask) {
  BATON_RETURN_IF_ERROR(CheckUtf8("the line", line));
  AddMessage("user", line, chat);
  const absl::StatusOr<std::string> answer = ask();
  if (answer.ok()) {
    AddMessage("assistant", *answer, chat);
  } else {
    chat->mutable_messages()->RemoveLast();
  }
  return answer.status();
}

}  // namespace

absl::Status Converse(std::istream& lines, bool interactive, v1::Chat* chat,
                      const std::function<absl::StatusOr<std::string>()>& ask) {
  std::string line;
  while (true) {
    if (interactive) Print("> ");
    if (!std::getline(lines, line)) break;
    if (line.empty()) continue;
    const absl::Status status = TakeTurn(line, chat, ask);
    // Whoever types can try again; a script cannot. After Ctrl-C no call is made any more.
    if (!status.ok() && (!interactive || absl::IsCancelled(status))) return status;
    if (!status.ok()) std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  }
  if (interactive) Print("\n");
  return absl::OkStatus();
}

absl::Status RunCommand(const Options& options, Client* client) {
  switch (options.command) {
    case Command::kGenerate:
      return Generate(options, client);
    case Command::kChat:
      return Chat(options, client);
    case Command::kTokenize:
      return Tokenize(options, client);
    case Command::kDetokenize:
      return Detokenize(options, client);
    case Command::kStatus:
      return Status(options, client);
    case Command::kDrain:
      return Drain(options, client);
  }
  return absl::InternalError("unknown command");
}

}  // namespace baton::cli
