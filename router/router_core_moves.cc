// RouterCore: running requests that go on at another decode worker, because theirs drains.
//
// The other worker is asked for a lease on all tokens shown so far; the one that runs the request
// fills it as a prefill worker would. Until the other one speaks the request belongs where it was,
// and what is said under the second attempt counts for nothing else. See "Moving house" in
// DESIGN_NOTES.md.
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/router_core.h"

namespace baton {
namespace {

constexpr uint32_t kMovesFailedMax = 3;  // Then it stays: it may finish before its worker goes.
// Of one worker: who waits for the line stands still for nothing.
constexpr uint32_t kMovesAtOnceMax = 4;
constexpr Duration kMoveBackoff = std::chrono::milliseconds(100);

// Whether a worker's answer belongs to the current move, not to one that was given up.
bool IsOf(const std::optional<MoveTarget>& move, uint64_t nonce) {
  return move.has_value() && move->ticket.has_value() && move->ticket->nonce_low() == nonce;
}

}  // namespace

absl::StatusOr<v1::DrainWorkerResponse> RouterCore::DrainWorker(const std::string& address,
                                                                Instant now) {
  const auto& all = workers_.all();
  const auto found = std::find_if(all.begin(), all.end(), [&address](const auto& item) {
    return item.second.address == address;
  });
  if (found == all.end()) {
    return absl::NotFoundError(
        absl::StrCat("no worker has the address ", address, "; `baton status` lists them"));
  }
  WorkerEntry& worker = *workers_.Find(found->first);
  if (!worker.connected) {
    return absl::UnavailableError(absl::StrCat("the worker ", address, " is not connected (",
                                               WorkerStateName(worker.state), ")"));
  }
  worker.told_to_drain = worker.incarnation();
  SendDrain(worker.id);
  actions_.push_back(Note{absl::StrCat("worker ", address, " is told to drain")});
  v1::DrainWorkerResponse response;
  response.set_incarnation(worker.hello.incarnation());
  response.set_requests(worker.attempts);
  // Before it says so itself, lest it be asked for what it would refuse.
  worker.draining = true;
  if (worker.serving()) OnDraining(worker, "the worker was told to go", now);
  return response;
}

void RouterCore::SendDrain(WorkerId worker) {
  v1::Command command;
  command.mutable_drain();
  actions_.push_back(SendCommand{.worker = worker, .command = std::move(command)});
}

void RouterCore::OnDraining(WorkerEntry& worker, std::string reason, Instant now) {
  worker.state = WorkerState::kDraining;
  worker.reason = std::move(reason);
  SendProbes(now);
  StartMoves(now);
}

void RouterCore::StartMoves(Instant now) {
  const auto drains = [](const auto& item) { return item.second.state == WorkerState::kDraining; };
  if (std::none_of(workers_.all().begin(), workers_.all().end(), drains)) return;
  std::map<WorkerId, uint32_t> under_way;
  for (const auto& [id, request] : requests_.all()) {
    if (request->move.has_value()) ++under_way[*request->decode];
  }
  for (const auto& [id, request] : requests_.all()) {
    if (request->state != RequestState::kDecoding || request->move.has_value()) continue;
    if (request->moves_failed >= kMovesFailedMax || now < request->move_not_before) continue;
    const WorkerEntry& from = *workers_.Find(*request->decode);
    // The last token is sampled sooner than it is moved.
    if (from.state != WorkerState::kDraining || request->tokens_left() <= 1) continue;
    if (under_way[from.id] >= kMovesAtOnceMax) continue;
    const std::optional<WorkerId> to =
        ChooseNextHome(workers_, pairs_, from.id, NeedOf(*request, request->move_avoid), now);
    if (!to.has_value()) continue;
    StartMove(*request, *to, now);
    ++under_way[from.id];
  }
}

void RouterCore::StartMove(Request& request, WorkerId to, Instant now) {
  WorkerEntry& worker = *workers_.Find(to);
  const AttemptId attempt = requests_.StartMove(request);
  request.move->to = to;
  request.move->placed_tokens = static_cast<uint32_t>(request.spec.tokens.size());
  request.move->placed_tokens_max = std::min(request.spec.total_tokens_max, KvTokensMax(worker));
  worker.attempts += 1;
  worker.blocks_pledged += BlocksFor(worker, request.move->placed_tokens + 1);
  v1::Command command;
  *command.mutable_admit()->mutable_work() =
      MakeWork(request, attempt, request.move->placed_tokens, request.move->placed_tokens_max, now);
  Send(to, std::move(command));
}

void RouterCore::OnMoveAdmitted(Request& request, const v1::Admitted& admitted, Instant now) {
  // It would compute everything again, while the other one could go on.
  if (!admitted.has_ticket()) return MoveFailed(request, std::nullopt, now);
  request.move->ticket = admitted.ticket();
  v1::Command command;
  command.mutable_migrate()->set_request(Raw(request.attempt));
  *command.mutable_migrate()->mutable_ticket() = admitted.ticket();
  Send(*request.decode, std::move(command));
}

void RouterCore::OnMigrated(WorkerId worker, const v1::Migrated& migrated, Instant now) {
  Request* request = OwnedByDecode(worker, migrated.request());
  if (request == nullptr) return;
  if (IsOf(request->move, migrated.nonce())) {
    pairs_.Succeeded(worker, request->move->to);
    return CompleteMove(*request, worker);
  }
  PlacementGone(*request, RetryCause::kDecodeFailed,
                "it moved to a worker that does not have it any more", worker, now);
}

void RouterCore::OnMigrateFailed(WorkerId worker, const v1::MigrateFailed& failed, Instant now) {
  Request* request = OwnedByDecode(worker, failed.request());
  if (request == nullptr || !IsOf(request->move, failed.nonce())) return;
  actions_.push_back(Note{absl::StrCat("request ", request->spec.client_request_id,
                                       " stays where it is: ", failed.message())});
  if (failed.transfer()) pairs_.Failed(worker, request->move->to, failed.message(), now);
  MoveFailed(*request, std::nullopt, now);
  // It can never go.
  if (failed.code() == static_cast<int>(absl::StatusCode::kFailedPrecondition)) {
    request->moves_failed = kMovesFailedMax;
  }
}

void RouterCore::OnMoveRejected(Request& request, WorkerId worker, const v1::Rejected& rejected,
                                Instant now) {
  if (rejected.code() != static_cast<int>(absl::StatusCode::kResourceExhausted)) {
    return MoveFailed(request, worker, now);
  }
  // Nothing failed: there is no room just now.
  PauseWorker(worker, rejected, now);
  DropMove(request, worker);
}

void RouterCore::CompleteMove(Request& request, std::optional<WorkerId> knows) {
  counters_.moves += 1;
  const MoveTarget move = *request.move;
  ReleasePrefill(request);
  if (request.decode != knows) {
    v1::Command command;
    command.mutable_cancel()->set_request(Raw(request.attempt));
    Send(*request.decode, std::move(command));
  }
  workers_.Find(*request.decode)->attempts -= 1;
  requests_.CompleteMove(request);
  request.decode = move.to;
  request.decode_address = workers_.Find(move.to)->address;
  request.placed_tokens = move.placed_tokens;
  request.placed_tokens_max = move.placed_tokens_max;
  request.ticket = move.ticket;
  request.state = RequestState::kDecoding;
  request.moves_failed = 0;
  request.move_avoid.reset();
  request.move_not_before = {};
}

void RouterCore::DropMove(Request& request, std::optional<WorkerId> knows) {
  if (request.move->ticket.has_value()) {
    v1::Command command;
    command.mutable_migrate()->set_request(Raw(request.attempt));
    Send(*request.decode, std::move(command));
  }
  if (request.move->to != knows) {
    v1::Command command;
    command.mutable_cancel()->set_request(Raw(request.move->attempt));
    Send(request.move->to, std::move(command));
  }
  workers_.Find(request.move->to)->attempts -= 1;
  requests_.EndMove(request);
}

void RouterCore::MoveFailed(Request& request, std::optional<WorkerId> knows, Instant now) {
  counters_.moves_failed += 1;
  request.move_avoid = request.move->to;
  DropMove(request, knows);
  request.moves_failed += 1;
  request.move_not_before = now + kMoveBackoff;
}

Request* RouterCore::OwnedByMove(WorkerId worker, uint64_t attempt) {
  Request* request = requests_.FindAttempt(AttemptId{attempt});
  const bool owned = request != nullptr && request->move.has_value() &&
                     request->move->attempt == AttemptId{attempt} && request->move->to == worker;
  return owned ? request : nullptr;
}

}  // namespace baton
