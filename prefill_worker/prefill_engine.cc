#include "prefill_worker/prefill_engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/wire_status.h"
#include "common/engine/ticket_codec.h"
#include "common/engine/work_codec.h"

namespace baton {

PrefillEngine::PrefillEngine(const PrefillEngineOptions& options, Executor* executor,
                             BlockPool* pool, EventPort* events, TransferPort* transfers,
                             ClockFunction clock)
    : options_(options),
      executor_(executor),
      pool_(pool),
      events_(events),
      transfers_(transfers),
      clock_(std::move(clock)),
      block_tokens_(executor->arena().layout().block_tokens),
      probes_(events, transfers) {}

PrefillEngine::~PrefillEngine() = default;

void PrefillEngine::OnCommand(Incarnation router, const v1::Command& command, Instant now) {
  if (command.has_prefill()) OnPrefill(router, command.prefill(), now);
  if (command.has_cancel()) {
    Close({router, RequestId{command.cancel().request()}}, /*abort_transfer=*/true);
  }
  if (command.has_probe()) probes_.Start(router, command.probe());
}

void PrefillEngine::OnPrefill(Incarnation router, const v1::Prefill& prefill, Instant now) {
  const RequestKey key = {router, RequestId{prefill.work().request()}};
  // A new attempt at the same request replaces the old one.
  Close(key, /*abort_transfer=*/true);
  const Epoch epoch{prefill.ticket().epoch()};
  absl::StatusOr<Sequence> sequence =
      SequenceFromWork(router, prefill.work(), executor_->model().config(), now);
  if (!sequence.ok()) {
    return SendFailure(key, epoch, sequence.status(), /*retryable=*/false, /*transfer=*/false);
  }
  if (prefill.has_ticket() && prefill.ticket().prompt_tokens() != sequence->token_count()) {
    return SendFailure(key, epoch,
                       absl::InvalidArgumentError(
                           absl::StrCat("the ticket is for ", prefill.ticket().prompt_tokens(),
                                        " tokens, not ", sequence->token_count())),
                       /*retryable=*/false, /*transfer=*/false);
  }
  const uint32_t needed = executor_->arena().layout().BlocksFor(sequence->token_count());
  if (needed > pool_->counts().total) {
    return SendFailure(key, epoch,
                       absl::InvalidArgumentError(absl::StrCat(
                           "prompt: it needs ", needed, " KV blocks, this prefill worker has ",
                           pool_->counts().total)),
                       /*retryable=*/false, /*transfer=*/false);
  }
  if (draining_) {
    return SendFailure(key, epoch, absl::UnavailableError("this prefill worker is draining"),
                       /*retryable=*/true, /*transfer=*/false);
  }
  if (jobs_.size() >= options_.jobs_max) {
    ++stats_.rejected;
    const absl::Status full = absl::ResourceExhaustedError(
        absl::StrCat("this prefill worker has ", jobs_.size(), " prompts already"));
    return events_->Send(router, RejectedEvent(key.request, full));
  }
  auto job = std::make_unique<Job>();
  job->sequence = *std::move(sequence);
  job->sequence.arrival = next_arrival_++;
  if (prefill.has_ticket()) job->ticket = TicketFromProto(prefill.ticket());
  scheduler_.Add(&job->sequence);
  deadlines_.Add(job->sequence.deadline, key);
  jobs_[key] = std::move(job);
}

bool PrefillEngine::Start(Job& job, Instant now) {
  Sequence& sequence = job.sequence;
  TakeCachedPrefix(*pool_, block_tokens_, sequence);
  if (!ReserveBlocks(*pool_, block_tokens_, sequence.token_count(), sequence).ok()) {
    sequence.GiveUpBlocks();
    sequence.cached_tokens = 0;
    return false;
  }
  job.started = true;
  sequence.started = now;
  stats_.cached_tokens += sequence.cached_tokens;
  if (!job.ticket.has_value()) return true;

  const TransferId id{next_transfer_++};
  const std::span<const BlockId> blocks = sequence.blocks.blocks();
  job.push_error = transfers_->BeginTransfer(id, *job.ticket, {blocks.begin(), blocks.end()});
  if (!job.push_error.ok()) return true;
  job.transfer = id;
  transfer_owner_[id] = sequence.key;
  if (sequence.cached_tokens > 0) {
    job.push_error = transfers_->PushTransfer(id, {0, executor_->arena().layout().layers},
                                              {0, sequence.cached_tokens});
  }
  return true;
}

void PrefillEngine::PushLayer(std::span<const StepItem> items, uint32_t layer) {
  for (const StepItem& item : items) {
    Job& job = *jobs_.at(item.sequence->key);
    if (!job.transfer.has_value() || !job.push_error.ok()) continue;
    const uint32_t start = item.sequence->computed;
    job.push_error =
        transfers_->PushTransfer(*job.transfer, {layer, layer + 1}, {start, start + item.count});
  }
}

bool PrefillEngine::Step(Instant now) {
  const std::vector<StepItem> items =
      scheduler_.Plan(options_.chunk_tokens, [this, now](Sequence& sequence) {
        Job& job = *jobs_.at(sequence.key);
        return job.started || Start(job, now);
      });
  if (items.empty()) return false;
  auto sampled = executor_->Run(items, [&](uint32_t layer) { PushLayer(items, layer); });
  const Instant end = clock_();
  if (!sampled.ok()) {
    for (const StepItem& item : items) {
      Fail(item.sequence->key, sampled.status(), /*retryable=*/true);
    }
    return true;
  }
  uint32_t token_count = 0;
  for (const StepItem& item : items) token_count += item.count;
  ++stats_.steps;
  stats_.prompt_tokens += token_count;
  rate_.Add(token_count, end - now);

  for (size_t i = 0; i < items.size(); ++i) {
    Sequence& sequence = *items[i].sequence;
    Job& job = *jobs_.at(sequence.key);
    PublishFullBlocks(*pool_, block_tokens_, sequence);
    if (!job.push_error.ok()) {
      const absl::Status error = job.push_error;
      // What is wrong with the ticket is wrong everywhere.
      Fail(sequence.key, error, /*retryable=*/!absl::IsInvalidArgument(error));
    } else if ((*sampled)[i].has_value()) {
      FinishPrompt(job, *(*sampled)[i], end);
    }
  }
  return true;
}

void PrefillEngine::FinishPrompt(Job& job, const SampledToken& token, Instant now) {
  Sequence& sequence = job.sequence;
  scheduler_.Remove(&sequence);
  ++stats_.finished;
  const uint32_t index = sequence.generated() - 1;
  const v1::Token token_proto = TokenToProto(index, token, sequence.sampling);
  const std::optional<v1::FinishReason> terminal = FinishOf(sequence);

  v1::Event event;
  v1::FirstToken* first = event.mutable_first_token();
  first->set_request(Raw(sequence.key.request));
  if (job.ticket.has_value()) first->set_epoch(Raw(job.ticket->epoch));
  *first->mutable_token() = token_proto;
  if (terminal.has_value()) first->set_terminal(*terminal);
  first->set_cached_tokens(sequence.cached_tokens);
  first->set_queue_ms(ToMilliseconds(sequence.started - sequence.arrived));
  first->set_prefill_ms(ToMilliseconds(now - sequence.started));
  events_->Send(sequence.key.router, std::move(event));

  if (terminal.has_value() || !job.transfer.has_value()) {
    return Close(sequence.key, /*abort_transfer=*/true);
  }
  CommittedToken committed = {.token = token.id, .index = index, .logprobs = ""};
  if (sequence.sampling.logprobs.has_value()) committed.logprobs = token_proto.SerializeAsString();
  const absl::Status status = transfers_->CommitTransfer(*job.transfer, std::move(committed));
  if (!status.ok()) Fail(sequence.key, status, /*retryable=*/false);
}

void PrefillEngine::OnTransferEvent(const TransferEvent& event, Instant /*now*/) {
  if (const auto* acked = std::get_if<TransferAcked>(&event)) {
    Job* job = FindByTransfer(acked->id);
    if (job == nullptr) return;
    v1::Event done_event;
    v1::PrefillDone* done = done_event.mutable_prefill_done();
    done->set_request(Raw(job->sequence.key.request));
    done->set_epoch(Raw(job->ticket->epoch));
    done->set_transfer_tail_ms(ToMilliseconds(acked->tail));
    done->set_bytes_sent(acked->bytes);
    events_->Send(job->sequence.key.router, std::move(done_event));
    Close(job->sequence.key, /*abort_transfer=*/false);
  } else if (const auto* failed = std::get_if<TransferFailed>(&event)) {
    Job* job = FindByTransfer(failed->id);
    if (job == nullptr) return;
    SendFailure(job->sequence.key, job->ticket->epoch, failed->status, failed->retryable,
                /*transfer=*/true);
    Close(job->sequence.key, /*abort_transfer=*/false);
  } else if (const auto* released = std::get_if<TransferReleased>(&event)) {
    transfer_owner_.erase(released->id);
    closing_.erase(released->id);
  } else if (const auto* probe = std::get_if<ProbeFinished>(&event)) {
    probes_.OnFinished(*probe);
  }
}

PrefillEngine::Job* PrefillEngine::FindByTransfer(TransferId id) {
  const auto owner = transfer_owner_.find(id);
  if (owner == transfer_owner_.end()) return nullptr;
  const auto job = jobs_.find(owner->second);
  // A newer attempt at the same request has another transfer.
  if (job == jobs_.end() || job->second->transfer != id) return nullptr;
  return job->second.get();
}

void PrefillEngine::Fail(RequestKey key, const absl::Status& status, bool retryable) {
  const Job& job = *jobs_.at(key);
  const Epoch epoch = job.ticket.has_value() ? job.ticket->epoch : Epoch{0};
  SendFailure(key, epoch, status, retryable, /*transfer=*/false);
  Close(key, /*abort_transfer=*/true);
}

void PrefillEngine::SendFailure(RequestKey key, Epoch epoch, const absl::Status& status,
                                bool retryable, bool transfer) {
  ++stats_.failed;
  v1::Event event;
  v1::PrefillFailed* failed = event.mutable_prefill_failed();
  failed->set_request(Raw(key.request));
  failed->set_epoch(Raw(epoch));
  failed->set_retryable(retryable);
  SetWireStatus(status, failed);
  failed->set_transfer(transfer);
  events_->Send(key.router, std::move(event));
}

void PrefillEngine::Close(RequestKey key, bool abort_transfer) {
  const auto it = jobs_.find(key);
  if (it == jobs_.end()) return;
  std::unique_ptr<Job> job = std::move(it->second);
  jobs_.erase(it);
  deadlines_.Remove(job->sequence.deadline, key);
  scheduler_.Remove(&job->sequence);
  if (!job->transfer.has_value()) return;
  const TransferId transfer = *job->transfer;
  if (abort_transfer) transfers_->AbortTransfer(transfer);
  closing_[transfer] = std::move(job);
}

void PrefillEngine::OnSessionClosed(Incarnation router) {
  std::vector<RequestKey> keys;
  for (const auto& [key, job] : jobs_) {
    if (key.router == router) keys.push_back(key);
  }
  for (const RequestKey& key : keys) Close(key, /*abort_transfer=*/true);
}

void PrefillEngine::OnTick(Instant now) {
  for (const RequestKey& key : deadlines_.Due(now)) {
    Fail(key, absl::DeadlineExceededError("the deadline passed during prefill"),
         /*retryable=*/false);
  }
}

v1::WorkerLoad PrefillEngine::Load() const {
  v1::WorkerLoad load = LoadFromCounts(pool_->counts());
  const auto waiting = std::count_if(jobs_.begin(), jobs_.end(),
                                     [](const auto& item) { return !item.second->started; });
  load.set_sequences_running(static_cast<uint32_t>(jobs_.size()) - static_cast<uint32_t>(waiting));
  load.set_sequences_waiting(static_cast<uint32_t>(waiting));
  load.set_tokens_queued(scheduler_.queued_tokens());
  load.set_prefill_tokens_per_second(rate_.per_second());
  return load;
}

}  // namespace baton
