// For tests of the whole router over real gRPC: a router, its clients' end, and what calls gave.
#ifndef BATON_ROUTER_TESTING_ROUTER_SERVICE_FIXTURE_H_
#define BATON_ROUTER_TESTING_ROUTER_SERVICE_FIXTURE_H_

#include <grpc/impl/codegen/grpc_types.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/channel.h"
#include "common/rpc/grpc_setup.h"
#include "common/rpc/testing/unary_call.h"
#include "router/fake_worker.h"
#include "router/router.h"

namespace baton {

// A call and all that came of it.
struct Reply {
  grpc::Status status;
  std::vector<v1::Started> started;
  std::vector<TokenId> ids;
  std::string text;
  std::vector<v1::Finished> finished;
  std::string request_id_header;
  std::string request_id_trailer;
  std::string retry_after;
};

class RouterServiceFixture : public testing::Test {
 protected:
  void StartRouter(const std::vector<std::string>& decode, CoreOptions core = {}) {
    RouterOptions options;
    options.model = "deploy/demo_model/model";
    options.workers.decode = decode;
    options.workers.prefill = prefill;
    options.workers.resolve_interval = std::chrono::milliseconds(5);
    if (resolver) options.resolver = resolver;
    options.loop.core = std::move(core);
    options.loop.tick = std::chrono::milliseconds(5);
    options.loop.streams_max = streams_max;
    options.loop.client_read_max = client_read_max;
    options.texts.jobs_max = text_jobs_max;
    options.loop.session.backoff_max = std::chrono::milliseconds(200);
    options.version = "test";
    absl::StatusOr<std::unique_ptr<Router>> started = Router::Start(std::move(options), &metrics);
    ASSERT_TRUE(started.ok()) << started.status();
    router = *std::move(started);
    channel = CreateChannel(router->address());
    stub = v1::Inference::NewStub(channel);
  }
  static v1::GenerateRequest Ask(uint32_t max_tokens = 8) {
    v1::GenerateRequest request;
    for (const TokenId id : kPrompt) request.mutable_prompt_ids()->add_ids(id);
    request.set_max_tokens(max_tokens);
    return request;
  }
  // What every worker would answer.
  static std::vector<TokenId> Expected(uint32_t max_tokens = 8) {
    std::vector<TokenId> tokens = kPrompt;
    for (uint32_t i = 0; i < max_tokens; ++i) tokens.push_back(HashToken(tokens));
    return {tokens.begin() + static_cast<ptrdiff_t>(kPrompt.size()), tokens.end()};
  }
  using Reader = grpc::ClientReader<v1::GenerateResponse>;
  // Reads until `ids_max` tokens came or the stream ended.
  static void Read(Reader* reader, size_t ids_max, Reply* reply) {
    v1::GenerateResponse response;
    while (reply->ids.size() < ids_max && reader->Read(&response)) {
      if (response.has_started()) reply->started.push_back(response.started());
      if (response.has_finished()) reply->finished.push_back(response.finished());
      for (const v1::Token& token : response.delta().tokens()) {
        EXPECT_EQ(token.index(), reply->ids.size());
        reply->ids.push_back(token.id());
      }
      reply->text += response.delta().text();
    }
  }
  Reply Call(const v1::GenerateRequest& request, grpc::ClientContext* context) {
    Reply reply;
    const auto reader = stub->Generate(context, request);
    Read(reader.get(), SIZE_MAX, &reply);
    reply.status = reader->Finish();
    const auto value = [](const auto& metadata, const char* key) {
      const auto it = metadata.find(key);
      return it == metadata.end() ? "" : std::string(it->second.data(), it->second.size());
    };
    reply.request_id_header = value(context->GetServerInitialMetadata(), "x-request-id");
    reply.request_id_trailer = value(context->GetServerTrailingMetadata(), "x-request-id");
    reply.retry_after = value(context->GetServerTrailingMetadata(), "retry-after-ms");
    return reply;
  }
  Reply Call(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Call(request, &context);
  }
  v1::GetClusterResponse Cluster() {
    grpc::ClientContext context;
    v1::GetClusterResponse response;
    EXPECT_TRUE(stub->GetCluster(&context, {}, &response).ok());
    return response;
  }
  // Asks for the cluster until it is as wanted; each round waits for the router's thread.
  template <typename Condition>
  bool AwaitCluster(const Condition& condition) {
    const Instant end = Now() + std::chrono::seconds(20);
    while (Now() < end) {
      if (condition(Cluster())) return true;
    }
    return false;
  }

  // A refused call has nothing but trailers, so that gRPC's own retries may repeat it.
  static void ExpectOnlyTrailers(const Reply& reply) {
    EXPECT_TRUE(reply.started.empty());
    EXPECT_EQ(reply.request_id_header, "");
    EXPECT_NE(reply.request_id_trailer, "");
  }

  // What grpc.health.v1 says.
  bool Serving() {
    const auto answer = UnaryCall(channel, kHealthCheck, "");
    return answer.ok() && *answer == kServing;
  }

  // A client that takes nothing from the network but what it reads.
  std::unique_ptr<v1::Inference::Stub> SlowClient() {
    SetUpGrpc();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return v1::Inference::NewStub(grpc::CreateCustomChannel(
        router->address(), grpc::InsecureChannelCredentials(), arguments));
  }
  // Asks until the router takes the call.
  bool AwaitRoom() {
    const Instant end = Now() + std::chrono::seconds(20);
    while (Now() < end) {
      if (Call(Ask()).status.ok()) return true;
    }
    return false;
  }

  static inline const std::vector<TokenId> kPrompt = {310, 320, 330};
  uint32_t streams_max = 8192;
  Duration client_read_max = std::chrono::seconds(30);
  size_t text_jobs_max = 8192;
  std::vector<std::string> prefill;
  WorkerDirectory::Resolver resolver;
  MetricsRegistry metrics;
  std::unique_ptr<Router> router;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> stub;
};

}  // namespace baton

#endif  // BATON_ROUTER_TESTING_ROUTER_SERVICE_FIXTURE_H_
