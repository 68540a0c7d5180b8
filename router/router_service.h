// The client API (proto/inference.proto) over gRPC: reads and checks requests on gRPC's threads,
// hands them to the router's thread, and writes what comes back.
#ifndef BATON_ROUTER_ROUTER_SERVICE_H_
#define BATON_ROUTER_ROUTER_SERVICE_H_

#include <functional>

#include "common/base/ids.h"
#include "proto/inference.grpc.pb.h"
#include "router/router_loop.h"
#include "router/router_model.h"

namespace baton {

class RouterService final : public v1::Inference::CallbackService {
 public:
  struct Options {
    const RouterModel* model = nullptr;  // Borrowed.
    RouterLoop* loop = nullptr;          // Borrowed.
    RouterMetrics* metrics = nullptr;    // Borrowed.
    Incarnation incarnation{};
    std::string version;
    // 64 random bits, for seeds and request ids; any thread.
    std::function<uint64_t()> random;
  };
  explicit RouterService(Options options) : options_(std::move(options)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context,
                                       const v1::GetClusterRequest* request,
                                       v1::GetClusterResponse* response) override;

 private:
  absl::Status DoTokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) const;
  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse* response) const;

  const Options options_;
};

}  // namespace baton

#endif  // BATON_ROUTER_ROUTER_SERVICE_H_
