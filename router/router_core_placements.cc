// RouterCore: what a placement asks of its workers, and what happens when one of them fails it.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "router/router_core.h"

namespace baton {
namespace {

// A long stream meets more failures than a short one; a request that makes workers fail does not
// get far between two of them.
constexpr uint32_t kRetryProgressTokens = 64;

}  // namespace

void RouterCore::Send(WorkerId id, v1::Command command) {
  const WorkerEntry* worker = workers_.Find(id);
  if (worker == nullptr || !worker->serving()) return;
  actions_.push_back(SendCommand{.worker = id, .command = std::move(command)});
}

v1::Work RouterCore::MakeWork(const Request& request, AttemptId attempt, uint32_t placed_tokens,
                              uint32_t placed_tokens_max, Instant now) const {
  v1::Work work;
  work.set_request(Raw(attempt));
  // All attempts to fill one lease compute the same tokens; Show notices if a later one samples
  // something else than the client has seen.
  work.mutable_tokens()->Add(request.spec.tokens.begin(),
                             request.spec.tokens.begin() + placed_tokens);
  work.set_prompt_tokens(request.spec.prompt_tokens);
  work.set_total_tokens_max(placed_tokens_max);
  *work.mutable_sampling() = request.spec.sampling;
  *work.mutable_stopping() = request.spec.stopping;
  if (request.spec.deadline != kNever) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(request.spec.deadline - now);
    work.set_deadline_ms(static_cast<uint64_t>(std::max<int64_t>(left.count(), 1)));
  }
  work.set_priority(request.spec.priority);
  work.set_client_request_id(request.spec.client_request_id);
  return work;
}

void RouterCore::SendPrefill(Request& request, Instant now) {
  BATON_CHECK(request.prefill.has_value());
  request.state = RequestState::kPrefilling;
  v1::Command command;
  *command.mutable_prefill()->mutable_work() =
      MakeWork(request, request.attempt, request.placed_tokens, request.placed_tokens_max, now);
  if (request.ticket.has_value()) *command.mutable_prefill()->mutable_ticket() = *request.ticket;
  Send(*request.prefill, std::move(command));
}

void RouterCore::CancelWorkers(const Request& request, std::optional<WorkerId> except) {
  if (request.attempt == AttemptId{}) return;
  v1::Command command;
  command.mutable_cancel()->set_request(Raw(request.attempt));
  if (request.decode.has_value() && request.decode != except) Send(*request.decode, command);
  // Before kPrefilling P has not heard of the request, after it P is done.
  if (request.state == RequestState::kPrefilling && request.prefill.has_value() &&
      request.prefill != except) {
    Send(*request.prefill, command);
  }
  if (request.move.has_value() && request.move->to != except) {
    command.mutable_cancel()->set_request(Raw(request.move->attempt));
    Send(request.move->to, command);
  }
}

void RouterCore::AssignPrefill(Request& request, WorkerId id) {
  WorkerEntry& prefill = *workers_.Find(id);
  request.prefill = id;
  request.prefill_address = prefill.address;
  request.prefill_charge = computed_share_.Of(request.placed_tokens);
  prefill.attempts += 1;
  prefill.prefill_tokens += request.prefill_charge;
}

void RouterCore::ReleasePrefill(Request& request) {
  if (!request.prefill.has_value()) return;
  place_due_ = true;
  WorkerEntry& prefill = *workers_.Find(*request.prefill);
  prefill.attempts -= 1;
  prefill.prefill_tokens -= request.prefill_charge;
  request.prefill_charge = 0;
  request.prefill.reset();
}

void RouterCore::Reopen(Request& request, Instant now, std::optional<WorkerId> again) {
  const WorkerEntry& decode = *workers_.Find(*request.decode);
  const bool usable = again.has_value() && workers_.Find(*again)->ready() &&
                      pairs_.state(*again, decode.id) == PairState::kHealthy;
  const std::optional<WorkerId> prefill =
      usable
          ? again
          : ChoosePrefill(workers_, pairs_, decode.id, request.placed_tokens, request.avoid, now);
  if (!prefill.has_value() && !decode.hello.local_prefill()) {
    // Nobody can fill the lease now. Requests wait in the queue, holding no blocks.
    CancelWorkers(request, std::nullopt);
    Requeue(request, now);
    return;
  }
  if (prefill.has_value()) {
    AssignPrefill(request, *prefill);
  } else {
    counters_.local_prefills += 1;
    request.prefill_address.clear();
  }
  request.state = RequestState::kReopening;
  request.asked_at = now;
  v1::Command command;
  command.mutable_reopen()->set_request(Raw(request.attempt));
  command.mutable_reopen()->set_local_prefill(!prefill.has_value());
  Send(decode.id, std::move(command));
}

bool RouterCore::CountRetry(Request& request, RetryCause cause, const std::string& why,
                            std::optional<WorkerId> knows, Instant now) {
  if (cause == RetryCause::kTokensDiffer) counters_.conflicts += 1;
  // Who has come a good deal further since has not failed for the same reason again.
  if (request.next_index() >= request.index_at_retry + kRetryProgressTokens) {
    request.retries_in_row = 0;
  }
  if (request.retries_in_row < options_.retries_max) {
    request.index_at_retry = request.next_index();
    request.queued_since = now;
    request.retries_in_row += 1;
    request.retries += 1;
    counters_.retries[static_cast<size_t>(cause)] += 1;
    actions_.push_back(Note{absl::StrCat("request ", request.spec.client_request_id, " is moved (",
                                         RetryCauseName(cause), "): ", why)});
    return true;
  }
  End(request,
      {.status = absl::UnavailableError(
           absl::StrCat(why, "; the request was moved ", request.retries_in_row,
                        " times in a row already. It continues if sent again with seed ",
                        request.spec.sampling.seed(), " and the ", request.next_index(),
                        " tokens generated so far as generated_ids")),
       .knows = knows},
      now);
  return false;
}

void RouterCore::PrefillGone(Request& request, RetryCause cause, const std::string& why,
                             Instant now) {
  const std::optional<WorkerId> gone = request.prefill;
  const bool was_prefilling = request.state == RequestState::kPrefilling;
  ReleasePrefill(request);
  request.avoid = gone;
  // Otherwise P had only been chosen (OnAdmitted chooses another), or its part was done.
  if (!was_prefilling) return;
  if (!CountRetry(request, cause, why, gone, now)) return;
  if (request.decode.has_value()) {
    Reopen(request, now);
  } else {
    Requeue(request, now);
  }
}

void RouterCore::PushAgain(Request& request, const std::string& why, Instant now) {
  const std::optional<WorkerId> prefill = request.prefill;
  ReleasePrefill(request);
  request.pushed_again = true;
  if (CountRetry(request, RetryCause::kPrefillFailed, why, prefill, now)) {
    Reopen(request, now, prefill);
  }
}

void RouterCore::PlacementGone(Request& request, RetryCause cause, const std::string& why,
                               std::optional<WorkerId> knows, Instant now) {
  if (const std::optional<v1::FinishReason> reason = request.spec.end_reached()) {
    End(request, {.reason = *reason, .knows = knows}, now);
    return;
  }
  if (request.fills_worker()) return WorkerFilled(request, knows, now);
  if (!CountRetry(request, cause, why, knows, now)) return;
  CancelWorkers(request, knows);
  if (knows.has_value() && workers_.Find(*knows)->serving()) request.avoid = knows;
  Requeue(request, now);
}

void RouterCore::WorkerFilled(Request& request, std::optional<WorkerId> knows, Instant now) {
  if (!ReadyCouldTake(workers_, NeedOf(request, std::nullopt))) {
    End(request, {.reason = v1::FINISH_REASON_LENGTH, .knows = knows}, now);
    return;
  }
  CancelWorkers(request, knows);
  request.queued_since = now;
  Requeue(request, now);
}

}  // namespace baton
