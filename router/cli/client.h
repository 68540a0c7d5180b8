// Calls to a router, one at a time, that another thread may cancel.
#ifndef BATON_ROUTER_CLI_CLIENT_H_
#define BATON_ROUTER_CLI_CLIENT_H_

#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/request/answer.h"
#include "common/rpc/channel.h"
#include "proto/inference.grpc.pb.h"

namespace baton::cli {

struct ClientOptions {
  std::string router;               // host:port
  std::optional<Duration> timeout;  // Of one call.
  ChannelOptions channel;
  std::string api_key;  // Empty: none is sent.
};

class Client {
 public:
  explicit Client(ClientOptions options);

  // `on_text` gets the text as it comes. On failure the message says what to do.
  absl::StatusOr<Answer> Generate(const v1::GenerateRequest& request, const std::string& request_id,
                                  const std::function<void(const std::string&)>& on_text);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request);
  absl::StatusOr<v1::GetClusterResponse> GetCluster();
  absl::StatusOr<v1::GetModelResponse> GetModel();
  absl::StatusOr<v1::DrainWorkerResponse> DrainWorker(const std::string& worker);

  // Between calls. False: it was cancelled instead.
  bool Pause(Duration duration);

  // Cancels the call that is under way, and those that come later. False: none is. Any thread.
  bool Cancel();

 private:
  class Call;
  // The call's error in words for people.
  absl::Status Explain(const grpc::Status& status, const grpc::ClientContext& context) const;

  const ClientOptions options_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  absl::Mutex mutex_;
  grpc::ClientContext* active_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace baton::cli

#endif  // BATON_ROUTER_CLI_CLIENT_H_
