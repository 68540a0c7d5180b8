// RouterCore: what workers say.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/wire_status.h"
#include "router/router_core.h"

namespace baton {
namespace {

// How long a worker that refused for lack of room is left alone, whatever it hints.
constexpr uint32_t kFullPauseMinMs = 25;
constexpr uint32_t kFullPauseMaxMs = 2000;

enum class TokenFit { kNext, kRepeat, kConflict };

// How a worker's token relates to what the client has seen.
TokenFit Fit(const Request& request, const v1::Token& token, uint32_t vocab_size) {
  const bool is_token =
      token.id() >= 0 && (vocab_size == 0 || static_cast<uint32_t>(token.id()) < vocab_size);
  if (!is_token || token.index() > request.next_index()) return TokenFit::kConflict;
  if (token.index() == request.next_index()) {
    return request.tokens_left() == 0 ? TokenFit::kConflict : TokenFit::kNext;
  }
  return request.spec.tokens[request.spec.prompt_tokens + token.index()] == token.id()
             ? TokenFit::kRepeat
             : TokenFit::kConflict;
}

}  // namespace

void RouterCore::OnWorkerEvent(WorkerId id, const v1::Event& event, Instant now) {
  WorkerEntry* worker = workers_.Find(id);
  if (worker == nullptr || !worker->connected) return;
  if (event.has_draining() || event.has_drained()) worker->draining = true;
  if (event.has_drained()) worker->drained = true;
  if (!worker->serving()) return;
  // Tokens come in great numbers and take no place from anybody: a request that ends with them says
  // so itself. What a prefill worker reports decides between them, not whether it may be asked.
  const bool frees_nothing =
      event.has_tokens() || (event.has_load() && worker->role == v1::ROLE_PREFILL);
  if (!frees_nothing) place_due_ = true;
  switch (event.event_case()) {
    case v1::Event::kLoad:
      OnLoad(id, event.load());
      break;
    case v1::Event::kAdmitted:
      OnAdmitted(id, event.admitted(), now);
      break;
    case v1::Event::kRejected:
      OnRejected(id, event.rejected(), now);
      break;
    case v1::Event::kFirstToken:
      OnFirstToken(id, event.first_token(), now);
      break;
    case v1::Event::kPrefillDone:
      OnPrefillDone(id, event.prefill_done());
      break;
    case v1::Event::kPrefillFailed:
      OnPrefillFailed(id, event.prefill_failed(), now);
      break;
    case v1::Event::kTokens:
      OnTokens(id, event.tokens(), now);
      break;
    case v1::Event::kFinished:
      OnSequenceFinished(id, event.finished(), now);
      break;
    case v1::Event::kProbeResult:
      pairs_.ProbeAnswered(id, event.probe_result().probe(), event.probe_result().ok(),
                           event.probe_result().message(), event.probe_result().bytes_per_second(),
                           now);
      SendProbes(now);
      break;
    case v1::Event::kDraining:
    case v1::Event::kDrained:
      OnDraining(*worker, "the worker is going away", now);
      break;
    case v1::Event::kFailed:
      OnSequenceFailed(id, event.failed(), now);
      break;
    case v1::Event::kAlreadyCommitted:
      OnAlreadyCommitted(id, event.already_committed());
      break;
    case v1::Event::kMigrated:
      OnMigrated(id, event.migrated(), now);
      break;
    case v1::Event::kMigrateFailed:
      OnMigrateFailed(id, event.migrate_failed(), now);
      break;
    case v1::Event::kHello:
    case v1::Event::EVENT_NOT_SET:
      counters_.stale_events += 1;
      break;
  }
  PlaceIfDue(now);
}

Request* RouterCore::Owned(WorkerId worker, uint64_t attempt) {
  Request* request = requests_.FindAttempt(AttemptId{attempt});
  if (request != nullptr && request->attempt == AttemptId{attempt} &&
      (request->decode == worker || request->prefill == worker)) {
    return request;
  }
  counters_.stale_events += 1;
  return nullptr;
}

Request* RouterCore::OwnedByDecode(WorkerId worker, uint64_t attempt) {
  Request* request = Owned(worker, attempt);
  if (request == nullptr || request->decode == worker) return request;
  counters_.stale_events += 1;
  return nullptr;
}

Request* RouterCore::OwnedByPrefill(WorkerId worker, uint64_t attempt, uint32_t epoch) {
  Request* request = Owned(worker, attempt);
  if (request == nullptr) return nullptr;
  // In kAdmitting and kReopening P is chosen but has not been asked yet.
  const bool asked =
      request->state == RequestState::kPrefilling || request->state == RequestState::kDecoding;
  const bool epoch_fits = !request->ticket.has_value() || request->ticket->epoch() == epoch;
  if (request->prefill == worker && asked && epoch_fits) return request;
  counters_.stale_events += 1;
  return nullptr;
}

void RouterCore::OnAdmitted(WorkerId worker, const v1::Admitted& admitted, Instant now) {
  if (Request* moving = OwnedByMove(worker, admitted.request())) {
    return OnMoveAdmitted(*moving, admitted, now);
  }
  Request* request = OwnedByDecode(worker, admitted.request());
  if (request == nullptr) return;
  if (request->state != RequestState::kAdmitting && request->state != RequestState::kReopening) {
    counters_.stale_events += 1;
    return;
  }
  request->timings.set_admit_ms(request->timings.admit_ms() +
                                ToMilliseconds(now - request->asked_at));
  if (!admitted.has_ticket()) {
    request->state = RequestState::kLocalPrefill;
    request->ticket.reset();
    request->prefill_address.clear();
    NoteCached(*request, admitted.cached_tokens());
    ReleasePrefill(*request);
    return;
  }
  request->ticket = admitted.ticket();
  const bool usable = request->prefill.has_value() && workers_.Find(*request->prefill)->ready() &&
                      pairs_.state(*request->prefill, worker) == PairState::kHealthy;
  if (!usable) {
    ReleasePrefill(*request);
    const auto other =
        ChoosePrefill(workers_, pairs_, worker, request->placed_tokens, request->avoid, now);
    if (!other.has_value()) {
      Reopen(*request, now);
      return;
    }
    AssignPrefill(*request, *other);
  }
  SendPrefill(*request, now);
}

void RouterCore::OnRejected(WorkerId worker, const v1::Rejected& rejected, Instant now) {
  if (Request* moving = OwnedByMove(worker, rejected.request())) {
    return OnMoveRejected(*moving, worker, rejected, now);
  }
  Request* request = Owned(worker, rejected.request());
  if (request == nullptr) return;
  const bool by_decode = request->decode == worker;
  const bool expected = by_decode ? request->state == RequestState::kAdmitting ||
                                        request->state == RequestState::kReopening
                                  : request->state == RequestState::kPrefilling;
  if (!expected) {
    counters_.stale_events += 1;
    return;
  }
  if (const std::optional<v1::FinishReason> reason = request->spec.end_reached()) {
    return End(*request, {.reason = *reason, .knows = worker}, now);
  }
  const absl::Status status = FailureFromWire(rejected.code(), rejected.message());
  if (absl::IsResourceExhausted(status)) {
    PauseWorker(worker, rejected, now);
    CancelWorkers(*request, worker);
    Requeue(*request, now);
  } else if (absl::IsUnavailable(status)) {
    PlacementGone(*request, RetryCause::kRefused, rejected.message(), worker, now);
  } else {
    End(*request, {.status = status, .knows = worker}, now);
  }
}

void RouterCore::PauseWorker(WorkerId worker, const v1::Rejected& rejected, Instant now) {
  const auto pause = std::chrono::milliseconds(
      std::clamp<uint32_t>(rejected.retry_after_ms(), kFullPauseMinMs, kFullPauseMaxMs));
  workers_.Find(worker)->full_until = now + pause;
  counters_.no_room += 1;
}

void RouterCore::OnFirstToken(WorkerId worker, const v1::FirstToken& first, Instant now) {
  Request* request = OwnedByPrefill(worker, first.request(), first.epoch());
  if (request == nullptr) return;
  workers_.Find(worker)->prefill_tokens -= request->prefill_charge;
  request->prefill_charge = 0;
  NoteCached(*request, first.cached_tokens());
  request->timings.set_prefill_queue_ms(first.queue_ms());
  request->timings.set_prefill_ms(first.prefill_ms());
  google::protobuf::RepeatedPtrField<v1::Token> tokens;
  *tokens.Add() = first.token();
  switch (Show(*request, tokens, now)) {
    case Shown::kEnded:
      return;
    case Shown::kConflict:
      PlacementGone(*request, RetryCause::kTokensDiffer, "the first token contradicts one shown",
                    std::nullopt, now);
      return;
    case Shown::kAll:
      break;
  }
  if (first.terminal() != v1::FINISH_REASON_UNSPECIFIED) {
    EndAsTold(*request, worker, first.terminal(), now);
  } else if (!request->decode.has_value()) {
    EndAsTold(*request, worker, v1::FINISH_REASON_LENGTH, now);
  }
}

void RouterCore::NoteCached(Request& request, uint32_t cached_tokens) {
  // Later attempts find what the first one left there.
  if (request.cached_tokens.has_value()) return;
  request.cached_tokens = cached_tokens;
  computed_share_.Add(request.placed_tokens, cached_tokens);
}

void RouterCore::OnPrefillDone(WorkerId worker, const v1::PrefillDone& done) {
  Request* request = OwnedByPrefill(worker, done.request(), done.epoch());
  if (request == nullptr || !request->decode.has_value()) return;
  request->timings.set_transfer_tail_ms(done.transfer_tail_ms());
  pairs_.Succeeded(worker, *request->decode);
  ReleasePrefill(*request);
  request->state = RequestState::kDecoding;
}

void RouterCore::OnPrefillFailed(WorkerId worker, const v1::PrefillFailed& failed, Instant now) {
  Request* request = OwnedByPrefill(worker, failed.request(), failed.epoch());
  if (request == nullptr) return;
  const std::string why = absl::StrCat("prefill worker ", workers_.Find(worker)->address,
                                       " failed: ", failed.message());
  const bool damaged = failed.code() == static_cast<int>(absl::StatusCode::kDataLoss);
  if (failed.transfer() && damaged && request->state == RequestState::kPrefilling &&
      request->decode.has_value() && !request->pushed_again) {
    return PushAgain(*request, why, now);
  }
  if (failed.transfer() && request->decode.has_value()) {
    pairs_.Failed(worker, *request->decode, failed.message(), now);
  }
  if (failed.retryable() || request->state == RequestState::kDecoding) {
    PrefillGone(*request, RetryCause::kPrefillFailed, why, now);
  } else {
    End(*request, {.status = FailureFromWire(failed.code(), failed.message()), .knows = worker},
        now);
  }
}

void RouterCore::OnTokens(WorkerId worker, const v1::Tokens& tokens, Instant now) {
  for (const v1::Tokens::Sequence& sequence : tokens.sequences()) {
    OnSequenceTokens(worker, sequence, now);
  }
}

void RouterCore::OnSequenceTokens(WorkerId worker, const v1::Tokens::Sequence& sequence,
                                  Instant now) {
  // A worker speaks of what it runs, so the move to it is complete.
  if (Request* moving = OwnedByMove(worker, sequence.request())) {
    CompleteMove(*moving, std::nullopt);
  }
  Request* request = OwnedByDecode(worker, sequence.request());
  if (request == nullptr) return;
  const bool epoch_fits =
      !request->ticket.has_value() || request->ticket->epoch() == sequence.epoch();
  if (request->state == RequestState::kAdmitting || !epoch_fits) {
    counters_.stale_events += 1;
    return;
  }
  // D speaks only of what it has committed, so P's part is done, whether P's answer arrived or not.
  // A P that was chosen for a reopened lease will not be asked any more.
  if (request->state == RequestState::kReopening) ReleasePrefill(*request);
  request->state = RequestState::kDecoding;
  if (Show(*request, sequence.tokens(), now) == Shown::kConflict) {
    PlacementGone(*request, RetryCause::kTokensDiffer,
                  absl::StrCat("decode worker ", workers_.Find(worker)->address,
                               " contradicts a token that was shown, or skips one"),
                  std::nullopt, now);
  }
}

void RouterCore::OnSequenceFinished(WorkerId worker, const v1::SequenceFinished& finished,
                                    Instant now) {
  Request* request = OwnedByDecode(worker, finished.request());
  if (request == nullptr) return;
  if (request->timings.prefill_ms() == 0) {
    request->timings.set_prefill_queue_ms(finished.queue_ms());
    request->timings.set_prefill_ms(finished.prefill_ms());
  }
  EndAsTold(*request, worker, finished.reason(), now);
}

void RouterCore::EndAsTold(Request& request, WorkerId worker, v1::FinishReason reason,
                           Instant now) {
  if (request.spec.end_reached() == reason) {
    End(request, {.reason = reason, .knows = worker}, now);
    return;
  }
  if (reason == v1::FINISH_REASON_LENGTH && request.fills_worker()) {
    return WorkerFilled(request, worker, now);
  }
  // An end that the tokens do not bear out would be a silent truncation.
  PlacementGone(
      request, RetryCause::kTokensDiffer,
      absl::StrCat("worker ", workers_.Find(worker)->address, " ended it with ",
                   v1::FinishReason_Name(reason), " and ", request.tokens_left(), " tokens left"),
      worker, now);
}

void RouterCore::OnSequenceFailed(WorkerId worker, const v1::SequenceFailed& failed, Instant now) {
  if (Request* moving = OwnedByMove(worker, failed.request())) {
    return MoveFailed(*moving, worker, now);
  }
  Request* request = OwnedByDecode(worker, failed.request());
  if (request == nullptr) return;
  if (failed.retryable()) {
    const std::string why = absl::StrCat("decode worker ", workers_.Find(worker)->address,
                                         " failed: ", failed.message());
    PlacementGone(*request, RetryCause::kDecodeFailed, why, worker, now);
  } else {
    End(*request, {.status = FailureFromWire(failed.code(), failed.message()), .knows = worker},
        now);
  }
}

void RouterCore::OnAlreadyCommitted(WorkerId worker, const v1::AlreadyCommitted& committed) {
  Request* request = OwnedByDecode(worker, committed.request());
  if (request == nullptr) return;
  if (request->state != RequestState::kReopening) return;  // Its tokens came first.
  ReleasePrefill(*request);
  request->state = RequestState::kDecoding;
}

void RouterCore::OnLoad(WorkerId id, const v1::Load& load) {
  WorkerEntry& worker = *workers_.Find(id);
  worker.load = load.load();
  // It is divided by. No number, or none that can be, is as good as none.
  const double rate = worker.load.prefill_tokens_per_second();
  if (!std::isfinite(rate) || rate < 0) worker.load.clear_prefill_tokens_per_second();
  worker.blocks_pledged = 0;
}

RouterCore::Shown RouterCore::Show(Request& request,
                                   const google::protobuf::RepeatedPtrField<v1::Token>& tokens,
                                   Instant now) {
  v1::Delta delta;
  bool conflict = false;
  std::optional<std::string> stop_string;
  for (const v1::Token& token : tokens) {
    const TokenFit fit = Fit(request, token, options_.cluster.vocab_size);
    if (fit == TokenFit::kRepeat) continue;
    if (fit == TokenFit::kConflict) {
      conflict = true;
      break;
    }
    request.spec.tokens.push_back(token.id());
    *delta.add_tokens() = token;
    // The text ends before a stop token.
    if (request.spec.is_stop_token(token.id())) continue;
    TextStream::Step step = request.spec.text->Feed(token.id());
    delta.mutable_text()->append(step.text);
    stop_string = std::move(step.stop_string);
    if (stop_string.has_value()) break;
  }
  if (delta.tokens_size() > 0) {
    std::optional<Duration> pause;
    if (request.first_token_at.has_value()) {
      pause = now - request.last_token_at;
    } else {
      request.first_token_at = now;
      request.timings.set_first_token_ms(ToMilliseconds(now - request.spec.received));
    }
    request.last_token_at = now;
    counters_.tokens_shown += static_cast<uint64_t>(delta.tokens_size());
    EmitDelta(request, std::move(delta), pause);
  }
  if (stop_string.has_value()) {
    End(request, {.reason = v1::FINISH_REASON_STOP, .stop_string = std::move(stop_string)}, now);
    return Shown::kEnded;
  }
  if (request.unread_bytes > options_.client_buffer_bytes_max) {
    End(request,
        {.status = absl::AbortedError(absl::StrCat(
             "the client reads too slowly: ", request.unread_bytes, " bytes wait for it, at most ",
             options_.client_buffer_bytes_max, " may"))},
        now);
    return Shown::kEnded;
  }
  return conflict ? Shown::kConflict : Shown::kAll;
}

}  // namespace baton
