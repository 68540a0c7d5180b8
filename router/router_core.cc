#include "router/router_core.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace baton {
namespace {

// Longer than anybody waits, and a whole number of any kind.
constexpr double kWaitMsMax = 1e12;

}  // namespace

std::string RetryCauseName(RetryCause cause) {
  switch (cause) {
    case RetryCause::kPrefillLost:
      return "prefill_lost";
    case RetryCause::kPrefillFailed:
      return "prefill_failed";
    case RetryCause::kDecodeLost:
      return "decode_lost";
    case RetryCause::kDecodeFailed:
      return "decode_failed";
    case RetryCause::kTokensDiffer:
      return "tokens_differ";
    case RetryCause::kRefused:
      return "refused";
  }
  return "unknown";
}

RouterCore::RouterCore(CoreOptions options)
    : options_(std::move(options)),
      workers_(options_.cluster),
      pairs_(options_.pairs),
      queue_(options_.queue) {}

WorkerId RouterCore::AddWorker(std::string address, v1::Role role) {
  return workers_.Add(std::move(address), role);
}

void RouterCore::RemoveWorker(WorkerId id) {
  pairs_.Forget(id);
  workers_.Remove(id);
}

void RouterCore::OnWorkerUp(WorkerId id, const v1::WorkerHello& hello, Instant now) {
  const WorkerEntry* worker = workers_.Find(id);
  if (worker == nullptr) return;
  if (worker->serving()) OnWorkerDown(id, absl::UnavailableError("a new session began"), now);
  pairs_.Forget(id);
  workers_.Up(id, hello);
  actions_.push_back(Note{absl::StrCat(RoleName(worker->role), " worker ", worker->address, " is ",
                                       WorkerStateName(worker->state),
                                       worker->reason.empty() ? "" : ": ", worker->reason)});
  if (worker->draining) SendDrain(id);  // It may not have heard it in its last session.
  SendProbes(now);
  Place(now);
}

void RouterCore::OnWorkerDown(WorkerId id, const absl::Status& why, Instant now) {
  const WorkerEntry* worker = workers_.Find(id);
  if (worker == nullptr) return;
  const bool was_serving = worker->serving();
  workers_.Down(id, why);
  pairs_.Forget(id);
  if (!was_serving) return;
  std::vector<RequestId> on_it;
  for (const auto& [request_id, request] : requests_.all()) {
    if (request->move.has_value() && request->move->to == id) MoveFailed(*request, id, now);
    if (request->decode == id || request->prefill == id) on_it.push_back(request_id);
  }
  const std::string reason = absl::StrCat(RoleName(worker->role), " worker ", worker->address,
                                          " was lost: ", worker->reason);
  actions_.push_back(Note{absl::StrCat(reason, "; ", on_it.size(), " requests were on it")});
  for (const RequestId request_id : on_it) {
    Request* request = requests_.Find(request_id);
    if (request == nullptr) continue;
    if (request->decode == id) {
      request->home = DecodeHome{.worker = id, .incarnation = worker->incarnation()};
      PlacementGone(*request, RetryCause::kDecodeLost, reason, /*knows=*/id, now);
    } else {
      PrefillGone(*request, RetryCause::kPrefillLost, reason, now);
    }
  }
  for (const WorkerId accepted : workers_.JudgeAgain()) {
    const WorkerEntry& entry = *workers_.Find(accepted);
    actions_.push_back(
        Note{absl::StrCat("worker ", entry.address, " is ", WorkerStateName(entry.state),
                          ": what it was refused for is gone")});
  }
  SendProbes(now);
  Place(now);
}

void RouterCore::OnRequest(NewRequest spec, Instant now) {
  spec.deadline = std::min(spec.deadline, spec.received + options_.request_time_max);
  Request& request = requests_.Insert(std::move(spec));
  if (draining_) {
    End(request, {.status = absl::UnavailableError("the router is shutting down")}, now);
    return;
  }
  if (request.spec.deadline <= now) {
    End(request, {.status = absl::DeadlineExceededError("the deadline passed on arrival")}, now);
    return;
  }
  for (size_t i = request.spec.prompt_tokens; i < request.spec.tokens.size(); ++i) {
    const TextStream::Step step = request.spec.text->Feed(request.spec.tokens[i]);
    if (!step.stop_string.has_value()) continue;
    End(request, {.reason = v1::FINISH_REASON_STOP, .stop_string = step.stop_string}, now);
    return;
  }
  if (const std::optional<v1::FinishReason> reason = request.spec.end_reached()) {
    End(request, {.reason = *reason}, now);
    return;
  }
  absl::Status room = queue_.CheckRoom(request.spec.tokens.size());
  if (room.ok()) room = CannotMeetDeadline(request, now).value_or(absl::OkStatus());
  if (!room.ok()) {
    End(request, {.status = room, .retry_after_ms = RetryAfterMs()}, now);
    return;
  }
  const RequestId id = request.id();
  request.queued_since = now;
  Enqueue(request, now);
  Place(now);
  // It may have been too large for every worker.
  if (requests_.Find(id) != nullptr) actions_.push_back(Accept{id});
}

void RouterCore::OnCancel(RequestId id, Instant now) {
  Request* request = requests_.Find(id);
  if (request == nullptr) return;
  // gRPC cancels a call whose deadline has come.
  const bool late = request->spec.deadline <= now;
  End(*request,
      {.status = late ? absl::DeadlineExceededError("the deadline passed")
                      : absl::CancelledError("cancelled by the client")},
      now);
  Place(now);
}

void RouterCore::OnWritten(RequestId id, uint64_t bytes) {
  Request* request = requests_.Find(id);
  if (request == nullptr) return;
  request->unread_bytes -= std::min(bytes, request->unread_bytes);
}

void RouterCore::OnTick(Instant now) {
  EndExpired(now);
  EndOverdueInQueue(now);
  if (now >= pairs_.next_due()) SendProbes(now);
  Place(now);  // Whoever said that it is full may not be any more.
  StartMoves(now);
}

void RouterCore::EndAll(const absl::Status& status, Instant now) {
  std::vector<RequestId> ids;
  for (const auto& [id, request] : requests_.all()) ids.push_back(id);
  for (const RequestId id : ids) End(*requests_.Find(id), {.status = status}, now);
}

std::vector<Action> RouterCore::TakeActions() { return std::exchange(actions_, {}); }

v1::GetClusterResponse RouterCore::Cluster() const {
  v1::GetClusterResponse response;
  std::map<WorkerId, v1::WorkerStatus*> statuses;
  for (const auto& [id, worker] : workers_.all()) {
    v1::WorkerStatus* status = response.add_workers();
    status->set_address(worker.address);
    status->set_role(worker.role);
    status->set_state(WorkerStateName(worker.state));
    status->set_reason(worker.reason);
    status->set_incarnation(worker.hello.incarnation());
    status->set_version(worker.hello.version());
    status->set_drained(worker.drained);
    *status->mutable_load() = worker.load;
    statuses[id] = status;
  }
  for (const auto& [key, pair] : pairs_.all()) {
    if (pair.state != PairState::kDown) continue;
    for (const auto& [id, peer_id] : {key, PairTable::Key(key.second, key.first)}) {
      if (!workers_.Find(id)->ready()) continue;
      statuses[id]->set_reason(
          absl::StrCat("no KV path with ", workers_.Find(peer_id)->address, ": ", pair.reason));
    }
  }
  response.set_requests_queued(queue_.size());
  response.set_requests_running(static_cast<uint32_t>(requests_.size()) - queue_.size());
  return response;
}

void RouterCore::Enqueue(Request& request, Instant now) {
  request.state = RequestState::kQueued;
  request.queued_at = now;
  request.in_queue = true;
  place_due_ = true;
  queue_.Push(request.id(), request.spec.priority, request.arrival, request.spec.tokens.size());
}

void RouterCore::PlaceIfDue(Instant now) {
  if (place_due_) Place(now);
}

void RouterCore::Place(Instant now) {
  place_due_ = false;
  std::optional<RequestId> next = queue_.front();
  while (next.has_value()) {
    Request& request = *requests_.Find(*next);
    next = queue_.After(request.spec.priority, request.arrival);
    const PlacementNeed need = NeedOf(request, request.avoid);
    if (const absl::Status fits = CheckFits(workers_, need); !fits.ok()) {
      // Nothing is wrong with a request that was taken once; it has grown since.
      const bool was_taken = request.retries > 0 || request.next_index() > request.given_tokens;
      End(request, {.status = was_taken ? absl::UnavailableError(fits.message()) : fits}, now);
      continue;
    }
    // Nobody who goes first takes anything from it: whoever could hold it is away.
    if (!ReadyCouldTake(workers_, need)) continue;
    const std::optional<Placement> placement = ChoosePlacement(workers_, pairs_, need, now);
    // The first that waits for room waits with all behind it: smaller ones that slip by would
    // starve it.
    if (!placement.has_value()) return;
    queue_.Remove(request.spec.priority, request.arrival);
    request.in_queue = false;
    StartPlacement(request, *placement, now);
  }
}

PlacementNeed RouterCore::NeedOf(const Request& request, std::optional<WorkerId> avoid) const {
  const auto tokens = static_cast<uint32_t>(request.spec.tokens.size());
  return {.tokens = tokens,
          .total_tokens_max = request.spec.open_ended ? tokens + 1 : request.spec.total_tokens_max,
          .first_token_only = request.tokens_left() == 1,
          .avoid = avoid,
          .home = request.home,
          .prefill_tokens = computed_share_.Of(tokens),
          .prefill_tokens_max = options_.prefill_tokens_max};
}

void RouterCore::StartPlacement(Request& request, const Placement& placement, Instant now) {
  counters_.placements += 1;
  request.timings.set_queue_ms(request.timings.queue_ms() +
                               ToMilliseconds(now - request.queued_at));
  request.asked_at = now;
  request.placed_tokens = static_cast<uint32_t>(request.spec.tokens.size());
  request.placed_tokens_max = request.spec.total_tokens_max;
  requests_.StartAttempt(request);
  if (placement.prefill.has_value()) {
    AssignPrefill(request, *placement.prefill);
  } else {
    counters_.local_prefills += 1;
    request.prefill_address.clear();
  }
  if (!placement.decode.has_value()) {
    request.decode_address.clear();
    SendPrefill(request, now);
    return;
  }
  WorkerEntry& decode = *workers_.Find(*placement.decode);
  request.placed_tokens_max = std::min(request.placed_tokens_max, KvTokensMax(decode));
  request.decode = decode.id;
  request.decode_address = decode.address;
  request.home.reset();
  decode.attempts += 1;
  decode.blocks_pledged += BlocksFor(decode, request.placed_tokens + 1);
  request.state = RequestState::kAdmitting;
  v1::Command command;
  *command.mutable_admit()->mutable_work() =
      MakeWork(request, request.attempt, request.placed_tokens, request.placed_tokens_max, now);
  command.mutable_admit()->set_local_prefill(!placement.prefill.has_value());
  command.mutable_admit()->set_local_prefill_tokens_max(options_.local_prefill_tokens_max);
  Send(decode.id, std::move(command));
}

void RouterCore::Release(Request& request) {
  place_due_ = true;
  ReleasePrefill(request);
  if (request.move.has_value()) {
    workers_.Find(request.move->to)->attempts -= 1;
    requests_.EndMove(request);
  }
  request.moves_failed = 0;
  request.move_avoid.reset();
  request.move_not_before = {};
  if (request.decode.has_value()) {
    workers_.Find(*request.decode)->attempts -= 1;
    request.decode.reset();
  }
  request.ticket.reset();
  if (request.attempt != AttemptId{}) requests_.EndAttempt(request);
}

void RouterCore::Requeue(Request& request, Instant now) {
  Release(request);
  Enqueue(request, now);
}

void RouterCore::End(Request& request, Ending ending, Instant now) {
  CancelWorkers(request, ending.knows);
  if (ending.status.ok() && !ending.stop_string.has_value()) {
    TextStream::Step rest = request.spec.text->Flush();
    if (!rest.text.empty()) {
      v1::Delta delta;
      delta.set_text(std::move(rest.text));
      EmitDelta(request, std::move(delta), std::nullopt);
    }
    if (rest.stop_string.has_value()) {
      ending.reason = v1::FINISH_REASON_STOP;
      ending.stop_string = std::move(rest.stop_string);
    }
  }
  Finish finish{.request = request.id(),
                .status = ending.status,
                .finished = MakeFinished(request, ending, now),
                .retry_after_ms = ending.retry_after_ms};
  actions_.push_back(std::move(finish));
  if (request.in_queue) {
    queue_.Remove(request.spec.priority, request.arrival);
  }
  // What it held there is free now, or soon.
  if (request.decode.has_value()) workers_.Find(*request.decode)->full_until = Instant{};
  Release(request);
  requests_.Erase(request.id());
}

void RouterCore::EmitDelta(Request& request, v1::Delta delta, std::optional<Duration> pause) {
  const uint64_t bytes = delta.ByteSizeLong();
  request.unread_bytes += bytes;
  actions_.push_back(
      Emit{.request = request.id(), .delta = std::move(delta), .bytes = bytes, .pause = pause});
}

v1::Finished RouterCore::MakeFinished(const Request& request, const Ending& ending,
                                      Instant now) const {
  v1::Finished finished;
  finished.set_reason(ending.reason);
  if (ending.stop_string.has_value()) finished.set_stop_string(*ending.stop_string);
  if (ending.reason == v1::FINISH_REASON_STOP && !ending.stop_string.has_value() &&
      request.next_index() > 0 && request.spec.is_stop_token(request.spec.tokens.back())) {
    finished.set_stop_token_id(request.spec.tokens.back());
  }
  finished.mutable_usage()->set_prompt_tokens(request.spec.prompt_tokens);
  finished.mutable_usage()->set_cached_tokens(request.cached_tokens.value_or(0));
  finished.mutable_usage()->set_generated_tokens(request.next_index() - request.given_tokens);
  v1::StageTimings* timings = finished.mutable_timings();
  *timings = request.timings;
  if (request.in_queue) {
    timings->set_queue_ms(timings->queue_ms() + ToMilliseconds(now - request.queued_at));
  }
  if (request.first_token_at.has_value()) {
    timings->set_decode_ms(ToMilliseconds(request.last_token_at - *request.first_token_at));
  }
  timings->set_total_ms(ToMilliseconds(now - request.spec.received));
  finished.set_prefill_worker(request.prefill_address);
  finished.set_decode_worker(request.decode_address);
  finished.set_retries(request.retries);
  return finished;
}

std::optional<absl::Status> RouterCore::CannotMeetDeadline(const Request& request,
                                                           Instant now) const {
  const double rate = PrefillTokensPerSecond();
  // The rate is of tokens that are computed. Nobody is refused on a guess how many these are.
  const uint64_t ahead = computed_share_.Of(queue_.TokensAhead(request.spec.priority));
  if (rate <= 0 || ahead == 0 || !computed_share_.known()) return std::nullopt;
  const double wait_ms = std::min(1000.0 * static_cast<double>(ahead) / rate, kWaitMsMax);
  const double left_ms = ToMilliseconds(request.spec.deadline - now);
  if (wait_ms <= left_ms) return std::nullopt;
  return absl::ResourceExhaustedError(absl::StrCat(
      "the deadline cannot be met: ", ahead, " tokens to compute before it take about ",
      static_cast<uint64_t>(wait_ms), " ms, ", static_cast<uint64_t>(left_ms), " ms are left"));
}

double RouterCore::PrefillTokensPerSecond() const {
  double prefill = 0;
  double local = 0;
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.ready()) continue;
    (worker.role == v1::ROLE_PREFILL ? prefill : local) += worker.load.prefill_tokens_per_second();
  }
  return prefill > 0 ? prefill : local;
}

uint32_t RouterCore::RetryAfterMs() const {
  const double rate = PrefillTokensPerSecond();
  if (rate <= 0) return 1000;
  const double drained_ms =
      1000.0 * static_cast<double>(computed_share_.Of(queue_.tokens())) / rate;
  return static_cast<uint32_t>(std::clamp(drained_ms, 100.0, 10000.0));
}

void RouterCore::EndExpired(Instant now) {
  for (const RequestId id : requests_.Expired(now)) {
    Request& request = *requests_.Find(id);
    const bool waits = request.state == RequestState::kQueued;
    End(request,
        {.status = absl::DeadlineExceededError(
             absl::StrCat("the deadline passed ",
                          waits ? "in the router's queue" : "while the workers were at it", "; ",
                          request.next_index() - request.given_tokens, " tokens were generated"))},
        now);
  }
}

void RouterCore::EndOverdueInQueue(Instant now) {
  if (queue_.size() == 0) return;
  std::vector<RequestId> overdue;
  for (const auto& [id, request] : requests_.all()) {
    if (request->state == RequestState::kQueued &&
        now - request->queued_since >= options_.queue_time_max) {
      overdue.push_back(id);
    }
  }
  if (overdue.empty()) return;
  const absl::Status lack = WhatIsMissing();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(options_.queue_time_max);
  for (const RequestId id : overdue) {
    const std::string waited = absl::StrCat(" for ", seconds.count(), " s; see `baton status`");
    Ending ending{
        .status = lack.ok()
                      ? absl::ResourceExhaustedError("no worker could take the request" + waited)
                      : absl::UnavailableError(std::string(lack.message()) + waited)};
    if (lack.ok()) ending.retry_after_ms = RetryAfterMs();
    End(*requests_.Find(id), std::move(ending), now);
  }
}

absl::Status RouterCore::WhatIsMissing() const {
  bool decode = false;
  bool prefill = false;
  for (const auto& [id, worker] : workers_.all()) {
    if (!worker.ready()) continue;
    decode |= worker.role == v1::ROLE_DECODE;
    prefill |= worker.role == v1::ROLE_PREFILL || worker.hello.local_prefill();
  }
  if (!decode) return absl::UnavailableError("no decode worker was ready");
  if (!prefill) {
    return absl::UnavailableError(
        "no prefill worker was ready, and no decode worker computes prompts itself");
  }
  return absl::OkStatus();
}

void RouterCore::SendProbes(Instant now) {
  for (const PairTable::ProbeOrder& order : pairs_.Due(workers_, now)) {
    const WorkerEntry& decode = *workers_.Find(order.decode);
    v1::Command command;
    command.mutable_probe()->set_probe(order.probe);
    command.mutable_probe()->set_transfer_address(decode.hello.transfer_address());
    command.mutable_probe()->set_incarnation(decode.hello.incarnation());
    Send(order.prefill, std::move(command));
  }
}

}  // namespace baton
