// The client API (proto/inference.proto) over gRPC: reads and checks requests on the text pool's
// threads, hands them to the router's thread, and writes what comes back.
//
// Outlives its calls: the server is shut down first.
#ifndef BATON_ROUTER_ROUTER_SERVICE_H_
#define BATON_ROUTER_ROUTER_SERVICE_H_

#include <functional>

#include "common/base/ids.h"
#include "common/request/model_profile.h"
#include "proto/inference.grpc.pb.h"
#include "router/api_keys.h"
#include "router/router_loop.h"
#include "router/text_pool.h"

namespace baton {

// Generate and Tokenize carry text, so they take the call's bytes: see wire_request.h.
using RouterServiceBase = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Tokenize<v1::Inference::WithCallbackMethod_Detokenize<
        v1::Inference::WithCallbackMethod_GetModel<v1::Inference::WithCallbackMethod_GetCluster<
            v1::Inference::WithCallbackMethod_DrainWorker<v1::Inference::Service>>>>>>;

class RouterService final : public RouterServiceBase {
 public:
  struct Options {
    const ModelProfile* model = nullptr;  // Borrowed.
    RouterLoop* loop = nullptr;           // Borrowed.
    RouterMetrics* metrics = nullptr;     // Borrowed.
    const ApiKeys* keys = nullptr;        // Borrowed; null: whoever reaches the port may call.
    Incarnation incarnation{};
    std::string version;
    // 64 random bits, for seeds and request ids; any thread.
    std::function<uint64_t()> random;
    TextPoolOptions texts;
  };
  explicit RouterService(Options options) : options_(std::move(options)), texts_(options_.texts) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context,
                                       const v1::GetClusterRequest* request,
                                       v1::GetClusterResponse* response) override;
  grpc::ServerUnaryReactor* DrainWorker(grpc::CallbackServerContext* context,
                                        const v1::DrainWorkerRequest* request,
                                        v1::DrainWorkerResponse* response) override;

 private:
  // The name of the call's API key; empty where none is wanted. An error is the call's end. Every
  // method begins with this, or with Refusal.
  absl::StatusOr<std::string> Authorize(const grpc::CallbackServerContext& context,
                                        ApiKeys::Need need) const;
  // Null, or the end of a call that has not the key it needs.
  grpc::ServerUnaryReactor* Refusal(grpc::CallbackServerContext* context,
                                    ApiKeys::Need need = ApiKeys::Need::kAnyKey) const;
  // Ends the call with what `answer` gives, on a thread of the pool.
  grpc::ServerUnaryReactor* Answer(uint64_t bytes, std::function<absl::Status()> answer,
                                   grpc::CallbackServerContext* context);
  absl::Status DoTokenize(const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response) const;
  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse* response) const;

  const Options options_;
  TextPool texts_;
};

}  // namespace baton

#endif  // BATON_ROUTER_ROUTER_SERVICE_H_
