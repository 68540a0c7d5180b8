#include "router/cli/client.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/rpc/status_codec.h"
#include "router/api_keys.h"

namespace baton::cli {

// One call's context, known to Cancel while it lives.
class Client::Call {
 public:
  explicit Call(Client* client) : client_(client) {
    if (client->options_.timeout.has_value()) {
      context.set_deadline(std::chrono::system_clock::now() +
                           std::chrono::duration_cast<std::chrono::system_clock::duration>(
                               *client->options_.timeout));
    }
    if (!client->options_.api_key.empty()) {
      context.AddMetadata(kAuthorizationKey, kBearer + client->options_.api_key);
    }
    absl::MutexLock lock(&client->mutex_);
    client->active_ = &context;
    if (client->cancelled_) context.TryCancel();
  }
  ~Call() {
    absl::MutexLock lock(&client_->mutex_);
    client_->active_ = nullptr;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext context;

 private:
  Client* const client_;
};

Client::Client(ClientOptions options)
    : options_(std::move(options)),
      stub_(v1::Inference::NewStub(CreateChannel(options_.router, options_.channel))) {}

bool Client::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (active_ == nullptr) return false;
  active_->TryCancel();
  return true;
}

absl::StatusOr<Answer> Client::Generate(const v1::GenerateRequest& request,
                                        const std::string& request_id,
                                        const std::function<void(const std::string&)>& on_text) {
  Call call(this);
  if (!request_id.empty()) call.context.AddMetadata("x-request-id", request_id);
  const auto reader = stub_->Generate(&call.context, request);
  Answer answer;
  bool finished = false;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    if (response.has_started()) {
      answer.started = response.started();
    } else if (response.has_delta()) {
      for (v1::Token& token : *response.mutable_delta()->mutable_tokens()) {
        answer.tokens.push_back(std::move(token));
      }
      answer.text += response.delta().text();
      on_text(response.delta().text());
    } else if (response.has_finished()) {
      answer.finished = response.finished();
      finished = true;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return Explain(status, call.context);
  if (!finished) return absl::InternalError("the stream ended without its last message");
  return answer;
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  Call call(this);
  v1::TokenizeResponse response;
  const grpc::Status status = stub_->Tokenize(&call.context, request, &response);
  if (!status.ok()) return Explain(status, call.context);
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request) {
  Call call(this);
  v1::DetokenizeResponse response;
  const grpc::Status status = stub_->Detokenize(&call.context, request, &response);
  if (!status.ok()) return Explain(status, call.context);
  return response;
}

absl::StatusOr<v1::GetClusterResponse> Client::GetCluster() {
  Call call(this);
  v1::GetClusterResponse response;
  const grpc::Status status = stub_->GetCluster(&call.context, {}, &response);
  if (!status.ok()) return Explain(status, call.context);
  return response;
}

absl::StatusOr<v1::GetModelResponse> Client::GetModel() {
  Call call(this);
  v1::GetModelResponse response;
  const grpc::Status status = stub_->GetModel(&call.context, {}, &response);
  if (!status.ok()) return Explain(status, call.context);
  return response;
}

absl::StatusOr<v1::DrainWorkerResponse> Client::DrainWorker(const std::string& worker) {
  Call call(this);
  v1::DrainWorkerRequest request;
  request.set_address(worker);
  v1::DrainWorkerResponse response;
  const grpc::Status status = stub_->DrainWorker(&call.context, request, &response);
  if (!status.ok()) return Explain(status, call.context);
  return response;
}

bool Client::Pause(Duration duration) {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), absl::FromChrono(duration));
}

absl::Status Client::Explain(const grpc::Status& grpc_status,
                             const grpc::ClientContext& context) const {
  const absl::Status status = FromGrpcStatus(grpc_status);
  std::string advice;
  if (absl::IsUnavailable(status)) {
    advice = absl::StrCat(
        " (is baton_router running at ", options_.router, "? start it, or give --router host:port",
        options_.channel.tls == nullptr ? "; if it wants TLS, --tls_ca FILE" : "", ")");
  } else if (absl::IsResourceExhausted(status)) {
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto it = trailers.find("retry-after-ms");
    if (it != trailers.end()) {
      advice = absl::StrCat(" (try again in ", std::string(it->second.data(), it->second.size()),
                            " ms)");
    }
  } else if (absl::IsDeadlineExceeded(status) && options_.timeout.has_value()) {
    advice = " (give a longer --timeout)";
  }
  return absl::Status(status.code(), absl::StrCat(absl::StatusCodeToString(status.code()), ": ",
                                                  status.message(), advice));
}

}  // namespace baton::cli
