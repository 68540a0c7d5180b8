// The whole router over real gRPC: which calls it lets in.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/rpc/channel.h"
#include "common/rpc/status_codec.h"
#include "common/rpc/testing/certificates.h"
#include "common/rpc/testing/unary_call.h"
#include "router/fake_worker.h"
#include "router/router.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr char kUserKey[] = "user-key-0123456789";
constexpr char kAdminKey[] = "admin-key-0123456789";
using Metadata = std::multimap<std::string, std::string>;

class RouterSecurityTest : public testing::Test {
 protected:
  void SetUp() override {
    RouterOptions options;
    options.model = "deploy/demo_model/model";
    options.workers.decode = {worker.address()};
    options.loop.session.backoff_max = milliseconds(200);
    options.version = "test";
    WriteKeys(kUserKey);
    absl::StatusOr<std::unique_ptr<ApiKeys>> keys = ApiKeys::Load(files.Path("keys"));
    ASSERT_TRUE(keys.ok()) << keys.status();
    options.keys = *std::move(keys);
    absl::StatusOr<std::unique_ptr<Router>> started = Router::Start(std::move(options), &metrics);
    ASSERT_TRUE(started.ok()) << started.status();
    router = *std::move(started);
    channel = CreateChannel(router->address());
  }
  void WriteKeys(const std::string& user_key) const {
    files.Write("keys", absl::StrCat("user ", user_key, "\nadmin ", kAdminKey, " admin\n"));
  }

  // One call with an empty request by the method's name: how it ends. What streams is read to its
  // end and dropped.
  absl::Status Call(const std::string& method, const Metadata& metadata) {
    grpc::ClientContext context;
    for (const auto& [name, value] : metadata) context.AddMetadata(name, value);
    return UnaryCall(channel, method, "", context).status();
  }
  static Metadata Bearer(const std::string& key) { return {{"authorization", "Bearer " + key}}; }
  static std::vector<std::string> Methods() {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("baton.v1.Inference");
    std::vector<std::string> methods;
    for (int i = 0; i < service->method_count(); ++i) {
      methods.push_back(absl::StrCat("/", service->full_name(), "/", service->method(i)->name()));
    }
    return methods;
  }
  double CallsOf(const std::string& name) {
    return metrics
        .AddCounter("baton_calls_total", "Calls by the name of their API key.", {{"key", name}})
        .Value();
  }

  FakeWorker worker{{}};
  const TestFiles files;
  MetricsRegistry metrics;
  std::unique_ptr<Router> router;
  std::shared_ptr<grpc::Channel> channel;
};

TEST_F(RouterSecurityTest, EveryMethodNeedsAKey) {
  const std::vector<Metadata> strangers = {
      {},
      Bearer("unknown-key-0123456789"),
      {{"authorization", kUserKey}},
      {{"authorization", absl::StrCat("Bearer ", kUserKey)}, {"authorization", "Bearer x"}}};
  ASSERT_GE(Methods().size(), 5u);
  for (const std::string& method : Methods()) {
    for (const Metadata& metadata : strangers) {
      const absl::Status status = Call(method, metadata);
      EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << method << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("authorization: Bearer KEY")) << method;
    }
    EXPECT_NE(Call(method, Bearer(kAdminKey)).code(), absl::StatusCode::kUnauthenticated) << method;
  }
}

TEST_F(RouterSecurityTest, KeysOpenTheMethodsAndAreCountedByName) {
  const auto stub = v1::Inference::NewStub(channel);
  const auto generate = [&stub](const char* key) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", absl::StrCat("Bearer ", key));
    v1::GenerateRequest request;
    request.mutable_prompt_ids()->add_ids(310);
    request.set_max_tokens(4);
    const auto reader = stub->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    return FromGrpcStatus(reader->Finish());
  };

  EXPECT_TRUE(generate(kUserKey).ok());
  EXPECT_TRUE(generate(kAdminKey).ok());
  EXPECT_EQ(generate("unknown-key-0123456789").code(), absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(Call("/baton.v1.Inference/GetCluster", Bearer(kUserKey)).ok());

  EXPECT_EQ(CallsOf("user"), 2);
  EXPECT_EQ(CallsOf("admin"), 1);
}

TEST_F(RouterSecurityTest, OnlyAnAdminsKeySendsWorkersAway) {
  const std::string method = "/baton.v1.Inference/DrainWorker";
  EXPECT_EQ(Call(method, Bearer(kUserKey)).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Call(method, Bearer(kAdminKey)).code(), absl::StatusCode::kNotFound);
}

TEST_F(RouterSecurityTest, HealthAndReflectionAreOpen) {
  EXPECT_TRUE(Call("/grpc.health.v1.Health/Check", {}).ok());
  const absl::Status reflection =
      Call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", {});
  EXPECT_NE(reflection.code(), absl::StatusCode::kUnauthenticated) << reflection;
  EXPECT_NE(reflection.code(), absl::StatusCode::kUnavailable) << reflection;
}

TEST_F(RouterSecurityTest, KeysAreExchangedWhileServing) {
  const std::string method = "/baton.v1.Inference/GetCluster";
  constexpr char kNewKey[] = "fresh-key-0123456789";
  EXPECT_TRUE(Call(method, Bearer(kUserKey)).ok());

  WriteKeys(kNewKey);
  router->ReloadFiles();

  EXPECT_TRUE(Call(method, Bearer(kNewKey)).ok());
  EXPECT_EQ(Call(method, Bearer(kUserKey)).code(), absl::StatusCode::kUnauthenticated);
}

}  // namespace
}  // namespace baton
