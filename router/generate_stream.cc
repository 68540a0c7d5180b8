#include "router/generate_stream.h"

#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/request/request_reader.h"
#include "common/rpc/status_codec.h"
#include "common/telemetry/log.h"
#include "router/retry_hint.h"
#include "router/wire_request.h"

namespace baton {
namespace {

constexpr char kRequestIdKey[] = "x-request-id";

// The call's deadline by our own monotonic clock.
Instant DeadlineOf(const grpc::CallbackServerContext& context, Instant now) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  // What a call without a deadline has is far, but not the same everywhere.
  if (left > std::chrono::hours(24 * 365)) return kNever;
  return now + std::chrono::duration_cast<Duration>(left);
}

}  // namespace

GenerateStream::GenerateStream(grpc::CallbackServerContext* context, RouterLoop* loop,
                               RouterMetrics* metrics, std::string key_name)
    : context_(context),
      loop_(loop),
      metrics_(metrics),
      id_(loop->NewRequestId()),
      key_name_(std::move(key_name)) {}

void GenerateStream::Begin(const grpc::ByteBuffer& request, const ModelProfile& model,
                           const std::function<uint64_t()>& random) {
  const absl::Status status = TryBegin(request, model, random);
  if (!status.ok()) EndRefused(status);
}

void GenerateStream::Refuse(const absl::Status& status, uint64_t drawn_id) {
  (void)TakeRequestId(drawn_id);  // The refusal that counts is `status`.
  EndRefused(status);
}

void GenerateStream::EndRefused(const absl::Status& status) {
  metrics_->CountRequest(status);
  // Strangers are counted, and do not fill the log.
  Log(absl::IsUnauthenticated(status) ? LogLevel::kDebug : LogLevel::kInfo, "request refused",
      {{"request", request_id_}, {"key", key_name_}, {"status", status}});
  AddRetryHint(status, context_);
  FinishCall(status, /*refused=*/true);
}

absl::Status GenerateStream::TakeRequestId(uint64_t drawn) {
  const auto& metadata = context_->client_metadata();
  const auto it = metadata.find(kRequestIdKey);
  const bool given = it != metadata.end();
  const std::string drawn_id = absl::StrCat(absl::Hex(drawn, absl::kZeroPad16));
  request_id_ = given ? std::string(it->second.data(), it->second.size()) : drawn_id;
  absl::Status status = CheckRequestId(request_id_);
  if (!status.ok()) request_id_ = drawn_id;
  return status;
}

absl::Status GenerateStream::TryBegin(const grpc::ByteBuffer& bytes, const ModelProfile& model,
                                      const std::function<uint64_t()>& random) {
  BATON_RETURN_IF_ERROR(TakeRequestId(random()));
  if (cancelled()) return absl::CancelledError("cancelled by the client");
  v1::GenerateRequest request;
  BATON_RETURN_IF_ERROR(ParseWireRequest(bytes, &request));
  NewRequest work;
  BATON_ASSIGN_OR_RETURN(static_cast<CheckedRequest&>(work), ReadRequest(request, model, random()));
  work.id = id_;
  work.client_request_id = request_id_;
  work.received = received_;
  work.deadline = DeadlineOf(*context_, Now());
  v1::Started started;
  started.set_request_id(request_id_);
  started.set_seed(work.sampling.seed());
  started.set_prompt_tokens(work.prompt_tokens);
  {
    absl::MutexLock lock(&mutex_);
    started_ = std::move(started);
  }
  BATON_RETURN_IF_ERROR(loop_->Submit(std::move(work), this));
  submitted_ = true;
  // A cancel that came before the request was there has found nothing. That nothing else is done
  // until here keeps `this` alive.
  if (cancelled()) loop_->Cancel(id_);
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    busy_ = false;
    step = NextStep();
  }
  if (step.any()) Take(step);
  return absl::OkStatus();
}

GenerateStream::Step GenerateStream::NextStep() {
  if (busy_) return {};
  Step step{.write = false, .end = std::nullopt, .first = !responded_};
  if (!outbox_.empty()) {
    const ResponseOutbox::Message next = outbox_.Pop();
    in_flight_ = ToWire(next.response);
    in_flight_bytes_ = next.bytes;
    step.write = true;
    responded_ = true;
  } else if (ended_) {
    step.end = end_status_;
  } else {
    return {};
  }
  busy_ = true;
  return step;
}

void GenerateStream::Take(const Step& step) {
  if (step.write) {
    if (step.first) context_->AddInitialMetadata(kRequestIdKey, request_id_);
    StartWrite(&in_flight_);
  }
  if (step.end.has_value()) FinishCall(*step.end, /*refused=*/step.first);
}

void GenerateStream::PushStarted() {
  if (!started_.has_value()) return;
  v1::GenerateResponse response;
  *response.mutable_started() = *std::exchange(started_, std::nullopt);
  outbox_.Push(std::move(response));
}

void GenerateStream::Accept() {
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_) return;
    PushStarted();
    step = NextStep();
  }
  if (step.any()) Take(step);
}

bool GenerateStream::Write(v1::Delta delta, uint64_t bytes) {
  v1::GenerateResponse response;
  *response.mutable_delta() = std::move(delta);
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_) return false;
    PushStarted();
    outbox_.Push(std::move(response), bytes);
    step = NextStep();
  }
  if (step.any()) Take(step);
  return true;
}

uint64_t GenerateStream::TakeWrittenBytes() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(written_bytes_, 0);
}

void GenerateStream::End(const absl::Status& status, const v1::Finished& finished,
                         uint32_t retry_after_ms) {
  LogInfo("request ended", {{"request", request_id_},
                            {"key", key_name_},
                            {"status", status},
                            {"reason", v1::FinishReason_Name(finished.reason())},
                            {"prompt_tokens", finished.usage().prompt_tokens()},
                            {"generated_tokens", finished.usage().generated_tokens()},
                            {"first_token_ms", finished.timings().first_token_ms()},
                            {"total_ms", finished.timings().total_ms()},
                            {"prefill", finished.prefill_worker()},
                            {"decode", finished.decode_worker()},
                            {"retries", finished.retries()}});
  if (retry_after_ms > 0) AddRetryHint(retry_after_ms, context_);
  v1::GenerateResponse response;
  *response.mutable_finished() = finished;
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    if (status.ok() && !broken_) {
      PushStarted();
      outbox_.Push(std::move(response));
    } else {
      outbox_.Clear();
    }
    ended_ = true;
    end_status_ = status;
    step = NextStep();
  }
  if (step.any()) Take(step);
}

// RouterLoop sees to it that the call is not done yet, and its context there.
void GenerateStream::Cut() {
  LogInfo("the client has not read the end of its call", {{"request", request_id_}});
  context_->TryCancel();
}

void GenerateStream::OnWriteDone(bool ok) {
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    written_bytes_ += in_flight_bytes_;
    busy_ = false;
    if (!ok) {
      broken_ = true;
      outbox_.Clear();
    }
    step = NextStep();
  }
  if (step.any()) Take(step);
}

void GenerateStream::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  loop_->Cancel(id_);
}

void GenerateStream::OnDone() {
  if (submitted_) loop_->CallDone(this);
  delete this;
}

// The last touch: `this` may be gone when it returns.
void GenerateStream::FinishCall(const absl::Status& status, bool refused) {
  // Without metadata at its beginning a refused call is nothing but trailers, which is what gRPC's
  // clients may repeat by themselves.
  if (refused) context_->AddTrailingMetadata(kRequestIdKey, request_id_);
  ServerWriteReactor::Finish(ToGrpcStatus(status));
}

}  // namespace baton
