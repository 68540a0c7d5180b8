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
  FinishCall(status);
}

absl::Status GenerateStream::TakeRequestId(uint64_t drawn) {
  const auto& metadata = context_->client_metadata();
  const auto it = metadata.find(kRequestIdKey);
  const bool given = it != metadata.end();
  const std::string drawn_id = absl::StrCat(absl::Hex(drawn, absl::kZeroPad16));
  request_id_ = given ? std::string(it->second.data(), it->second.size()) : drawn_id;
  absl::Status status = CheckRequestId(request_id_);
  if (!status.ok()) request_id_ = drawn_id;
  context_->AddInitialMetadata(kRequestIdKey, request_id_);
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
  v1::GenerateResponse response;
  response.mutable_started()->set_request_id(request_id_);
  response.mutable_started()->set_seed(work.sampling.seed());
  response.mutable_started()->set_prompt_tokens(work.prompt_tokens);
  Message started{.response = ToWire(response)};
  {
    // Not written before the request is accepted: a refused call has no messages.
    absl::MutexLock lock(&mutex_);
    outbox_.push_back(std::move(started));
  }
  absl::Status submitted = loop_->Submit(std::move(work), this);
  if (!submitted.ok()) {
    absl::MutexLock lock(&mutex_);
    outbox_.clear();
    return submitted;
  }
  const grpc::ByteBuffer* first = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    first = &outbox_.front().response;
  }
  // A cancel that came before the request was there has found nothing. The write that has not
  // started yet keeps `this` alive.
  if (cancelled()) loop_->Cancel(id_);
  StartWrite(first);
  return absl::OkStatus();
}

bool GenerateStream::Post(Message message) {
  const grpc::ByteBuffer* next = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_) return false;
    outbox_.push_back(std::move(message));
    if (outbox_.size() == 1) next = &outbox_.front().response;
  }
  // The front stays where it is until OnWriteDone.
  if (next != nullptr) StartWrite(next);
  return true;
}

bool GenerateStream::Write(v1::Delta delta, uint64_t bytes) {
  v1::GenerateResponse response;
  *response.mutable_delta() = std::move(delta);
  return Post({.response = ToWire(response), .bytes = bytes});
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
  if (status.ok()) {
    v1::GenerateResponse response;
    *response.mutable_finished() = finished;
    (void)Post({.response = ToWire(response)});
  }
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    end_status_ = status;
    // OnWriteDone ends the call after the last message.
    if (!outbox_.empty()) return;
  }
  FinishCall(status);
}

void GenerateStream::OnWriteDone(bool ok) {
  const grpc::ByteBuffer* next = nullptr;
  std::optional<absl::Status> end;
  {
    absl::MutexLock lock(&mutex_);
    written_bytes_ += outbox_.front().bytes;
    outbox_.pop_front();
    if (!ok) {
      broken_ = true;
      outbox_.clear();
    }
    if (!outbox_.empty()) {
      next = &outbox_.front().response;
    } else if (ended_) {
      end = end_status_;
    }
  }
  if (next != nullptr) StartWrite(next);
  if (end.has_value()) FinishCall(*end);
}

void GenerateStream::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  loop_->Cancel(id_);
}

// The last touch: `this` may be gone when it returns.
void GenerateStream::FinishCall(const absl::Status& status) {
  ServerWriteReactor::Finish(ToGrpcStatus(status));
}

}  // namespace baton
