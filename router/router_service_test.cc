// The whole router over real gRPC: clients on one side, scripted decode workers on the other.
#include "router/router_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "absl/synchronization/notification.h"
#include "common/rpc/channel.h"
#include "common/rpc/testing/unary_call.h"
#include "router/fake_worker.h"
#include "router/router.h"
#include "router/testing/router_service_fixture.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class RouterServiceTest : public RouterServiceFixture {};

TEST_F(RouterServiceTest, StreamIsStartedThenDeltasThenFinished) {
  FakeWorker worker({});
  StartRouter({worker.address()});
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "mine-1");
  v1::GenerateRequest request = Ask();
  request.mutable_sampling()->set_seed(99);

  const Reply reply = Call(request, &context);

  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(reply.started.size(), 1u);
  EXPECT_EQ(reply.started[0].request_id(), "mine-1");
  EXPECT_EQ(reply.request_id_header, "mine-1");
  EXPECT_EQ(reply.started[0].seed(), 99u);
  EXPECT_EQ(reply.started[0].prompt_tokens(), 3u);
  EXPECT_THAT(reply.ids, ElementsAreArray(Expected()));
  const auto tokenizer = Tokenizer::Load("deploy/demo_model/model");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ(reply.text, (*tokenizer)->Decode(reply.ids, true));
  ASSERT_EQ(reply.finished.size(), 1u);
  EXPECT_EQ(reply.finished[0].reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(reply.finished[0].usage().generated_tokens(), 8u);
  EXPECT_EQ(reply.finished[0].decode_worker(), worker.address());
  EXPECT_EQ(worker.seen().last.client_request_id(), "mine-1");
  EXPECT_EQ(worker.seen().last.sampling().seed(), 99u);
}

TEST_F(RouterServiceTest, SeedAndRequestIdAreDrawnWhenAbsent) {
  FakeWorker worker({});
  StartRouter({worker.address()});

  const Reply first = Call(Ask());
  const Reply second = Call(Ask());

  ASSERT_TRUE(first.status.ok() && second.status.ok());
  EXPECT_EQ(first.started[0].request_id().size(), 16u);
  EXPECT_NE(first.started[0].request_id(), second.started[0].request_id());
  EXPECT_NE(first.started[0].seed(), second.started[0].seed());
}

TEST_F(RouterServiceTest, ManyCallsAtOnce) {
  FakeWorker first({.incarnation = 1});
  FakeWorker second({.incarnation = 2});
  StartRouter({first.address(), second.address()});
  ASSERT_TRUE(AwaitCluster([](const v1::GetClusterResponse& cluster) {
    return cluster.workers_size() == 2 && cluster.workers(0).state() == "ready" &&
           cluster.workers(1).state() == "ready";
  }));
  std::vector<std::thread> threads;
  std::vector<Reply> replies(16);
  for (Reply& reply : replies) threads.emplace_back([&] { reply = Call(Ask(40)); });
  for (std::thread& thread : threads) thread.join();

  for (const Reply& reply : replies) {
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_THAT(reply.ids, ElementsAreArray(Expected(40)));
  }
}

TEST_F(RouterServiceTest, BadInputNeverReachesAWorker) {
  FakeWorker worker({});
  StartRouter({worker.address()});
  v1::GenerateRequest request = Ask();
  request.mutable_sampling()->set_top_p(2);

  const Reply reply = Call(request);

  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.status.error_message(), StartsWith("sampling.top_p:"));
  ExpectOnlyTrailers(reply);
  EXPECT_EQ(worker.seen().admits, 0);
}

TEST_F(RouterServiceTest, TextThatIsNotUtf8IsRefusedByName) {
  StartRouter({"127.0.0.1:1"});
  // A call that is refused has no messages, so that a streaming method looks like a unary one.
  const auto refusal = [this](const std::string& method, const std::string& bytes) {
    return UnaryCall(channel, "/baton.v1.Inference/" + method, bytes).status().ToString();
  };

  EXPECT_THAT(refusal("Generate", "\x0a\x03hi\xff"), HasSubstr("INVALID_ARGUMENT: prompt: "));
  EXPECT_THAT(refusal("Generate", "\x1a\x05\x0a\x03\x12\x01\xff"),
              HasSubstr("INVALID_ARGUMENT: chat.messages[0].content: "));
  EXPECT_THAT(refusal("Generate", "\x32\x01x\x32\x01\xff"),
              HasSubstr("INVALID_ARGUMENT: stop[1]: "));
  EXPECT_THAT(refusal("Generate", "\x0a\x7f"), HasSubstr("INVALID_ARGUMENT: the call's bytes"));
  EXPECT_THAT(refusal("Tokenize", "\x0a\x01\xff"), HasSubstr("INVALID_ARGUMENT: text: "));
}

TEST_F(RouterServiceTest, HealthOfTheServiceFollowsItsWorkers) {
  FakeWorker worker({});
  const auto health = [this] {
    router->UpdateHealth();
    return UnaryCall(channel, kHealthCheck,
                     "\x0a\x12"
                     "baton.v1.Inference")
        .value();
  };
  StartRouter({"127.0.0.1:1"});
  EXPECT_EQ(health(), kNotServing);
  EXPECT_TRUE(Serving()) << "the server itself";
  router = nullptr;
  StartRouter({worker.address()});

  const Instant end = Now() + seconds(20);
  while (health() != kServing) ASSERT_LT(Now(), end);
  worker.Die();
  while (health() != kNotServing) ASSERT_LT(Now(), end);
  EXPECT_TRUE(Serving());
}

TEST_F(RouterServiceTest, BadRequestIdIsRefused) {
  StartRouter({"127.0.0.1:1"});
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", std::string(200, 'x'));

  EXPECT_THAT(Call(Ask(), &context).status.error_message(), StartsWith("x-request-id:"));
}

TEST_F(RouterServiceTest, ClientsCancelReachesTheWorker) {
  FakeWorker worker({.hold_after = 2});
  StartRouter({worker.address()});
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ask());
  Reply reply;
  Read(reader.get(), 2, &reply);

  context.TryCancel();

  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(worker.Await([](const FakeWorker::Seen& seen) { return seen.cancels == 1; }));
  EXPECT_TRUE(AwaitCluster([](const auto& cluster) { return cluster.requests_running() == 0; }));
}

TEST_F(RouterServiceTest, DeadlineEndsTheCallAndReachesTheWorker) {
  FakeWorker worker({.hold_after = 2});
  StartRouter({worker.address()});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(500));

  const Reply reply = Call(Ask(), &context);

  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(worker.Await([](const FakeWorker::Seen& seen) { return seen.cancels == 1; }));
  EXPECT_LE(worker.seen().last.deadline_ms(), 500u);
  EXPECT_GT(worker.seen().last.deadline_ms(), 0u);
}

TEST_F(RouterServiceTest, StreamContinuesWhenItsWorkerDiesAndComesBack) {
  FakeWorker first({.incarnation = 1, .hold_after = 3});
  StartRouter({first.address()});
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ask());
  Reply reply;
  Read(reader.get(), 3, &reply);
  first.Die();
  ASSERT_TRUE(AwaitCluster([](const auto& cluster) { return cluster.requests_queued() == 1; }));
  FakeWorker reborn({.listen = first.address(), .incarnation = 3});
  Read(reader.get(), SIZE_MAX, &reply);
  const grpc::Status status = reader->Finish();

  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(reply.ids, ElementsAreArray(Expected()));
  ASSERT_EQ(reply.finished.size(), 1u);
  EXPECT_EQ(reply.finished[0].retries(), 1u);
  EXPECT_EQ(reborn.seen().last.tokens_size(), 6) << "what was shown is input";
}

TEST_F(RouterServiceTest, GeneratedIdsContinueAnEarlierCall) {
  FakeWorker worker({});
  StartRouter({worker.address()});
  const Reply whole = Call(Ask());
  v1::GenerateRequest rest = Ask();
  for (size_t i = 0; i < 3; ++i) rest.add_generated_ids(whole.ids[i]);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, rest);
  v1::GenerateResponse response;
  std::vector<TokenId> ids;
  while (reader->Read(&response)) {
    for (const v1::Token& token : response.delta().tokens()) ids.push_back(token.id());
  }

  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_THAT(ids, ElementsAreArray(whole.ids.begin() + 3, whole.ids.end()));
}

TEST_F(RouterServiceTest, WorkerOfAnotherModelIsRefusedAndSaysWhy) {
  FakeWorker good({.incarnation = 1});
  FakeWorker bad({.incarnation = 2, .vocab_size = 1000});
  StartRouter({good.address(), bad.address()});

  const auto refused = [&bad](const v1::GetClusterResponse& cluster) {
    for (const v1::WorkerStatus& worker : cluster.workers()) {
      if (worker.address() == bad.address() && worker.state() == "refused") {
        EXPECT_THAT(worker.reason(), HasSubstr("vocabulary of 1000"));
        return true;
      }
    }
    return false;
  };
  EXPECT_TRUE(AwaitCluster(refused));
  EXPECT_TRUE(Call(Ask()).status.ok());
  EXPECT_EQ(bad.seen().admits, 0);
}

TEST_F(RouterServiceTest, WorkerThatComesLateServesWhatWaits) {
  std::string address;
  {
    FakeWorker early({.incarnation = 1});
    address = early.address();
  }
  StartRouter({address});
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ask());
  ASSERT_TRUE(AwaitCluster([](const auto& cluster) { return cluster.requests_queued() == 1; }));

  FakeWorker worker({.listen = address, .incarnation = 2});
  Reply reply;
  Read(reader.get(), SIZE_MAX, &reply);

  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(reply.ids, ElementsAreArray(Expected()));
}

TEST_F(RouterServiceTest, DrainFinishesStreamsAndRefusesNewOnes) {
  FakeWorker worker({.hold_after = 2});
  StartRouter({worker.address()});
  EXPECT_TRUE(Serving());
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ask());
  Reply reply;
  Read(reader.get(), 2, &reply);

  std::thread drain([this] { router->DrainAndStop(seconds(20)); });
  while (Serving()) {
  }
  // Draining reaches the router's thread a moment after health.
  Reply refused;
  do {
    grpc::ClientContext late;
    late.set_deadline(std::chrono::system_clock::now() + milliseconds(50));
    refused = Call(Ask(), &late);
  } while (refused.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  // And the port closes a moment later.
  absl::Status connects;
  do {
    connects = UnaryCall(CreateChannel(router->address()), kHealthCheck, "").status();
  } while (connects.ok());
  worker.Release();
  Read(reader.get(), SIZE_MAX, &reply);
  const grpc::Status status = reader->Finish();
  drain.join();

  EXPECT_THAT(refused.status.error_code(),
              AnyOf(grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::CANCELLED));
  EXPECT_EQ(connects.code(), absl::StatusCode::kUnavailable) << "clients go to other routers";
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(reply.ids, ElementsAreArray(Expected()));
}

TEST_F(RouterServiceTest, DrainDoesNotWaitForANameServer) {
  // Method: the name server answers once, so that the workers are told, and then hangs.
  std::atomic<int> asked = 0;
  absl::Notification hangs;
  absl::Notification answer;
  resolver = [&](const std::string&) -> absl::StatusOr<std::vector<std::string>> {
    if (++asked == 2) {
      hangs.Notify();
      answer.WaitForNotification();
    }
    return std::vector<std::string>();
  };
  prefill = {"workers.example:7"};
  StartRouter({"127.0.0.1:1"});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(20));
  const auto reader = stub->Generate(&context, Ask());
  hangs.WaitForNotification();

  std::thread drain([this] { router->DrainAndStop(Duration::zero()); });
  Reply reply;
  Read(reader.get(), SIZE_MAX, &reply);
  const bool ended_first = !answer.HasBeenNotified();
  const grpc::Status status = reader->Finish();
  answer.Notify();
  drain.join();

  EXPECT_TRUE(ended_first);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(RouterServiceTest, DrainEndsWhatTakesTooLong) {
  FakeWorker worker({.hold_after = 2});
  StartRouter({worker.address()});
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ask());
  Reply reply;
  Read(reader.get(), 2, &reply);

  router->DrainAndStop(Duration::zero());
  Read(reader.get(), SIZE_MAX, &reply);
  const grpc::Status status = reader->Finish();

  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("shut down"), HasSubstr("generated_ids")));
}

TEST_F(RouterServiceTest, TextAndIdsConvert) {
  StartRouter({"127.0.0.1:1"});
  v1::TokenizeRequest text;
  text.set_text("Once upon a time");
  v1::TokenizeResponse ids;
  grpc::ClientContext first;
  ASSERT_TRUE(stub->Tokenize(&first, text, &ids).ok());
  v1::DetokenizeRequest back;
  back.mutable_ids()->CopyFrom(ids.ids());
  v1::DetokenizeResponse response;
  grpc::ClientContext second;
  ASSERT_TRUE(stub->Detokenize(&second, back, &response).ok());
  EXPECT_EQ(response.text(), "Once upon a time");

  v1::DetokenizeRequest many;
  many.mutable_ids()->Resize(2049, 310);
  grpc::ClientContext fifth;
  EXPECT_EQ(stub->Detokenize(&fifth, many, &response).error_message(),
            "ids: 2049 tokens, but the context has 2048");
  back.add_ids(-1);
  grpc::ClientContext third;
  EXPECT_EQ(stub->Detokenize(&third, back, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  grpc::ClientContext fourth;
  EXPECT_EQ(stub->Tokenize(&fourth, {}, &ids).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(RouterServiceTest, TextBeyondTheContextIsRefusedBeforeItIsTokenized) {
  StartRouter({"127.0.0.1:1"});
  const auto model = ModelProfile::Load("deploy/demo_model/model");
  ASSERT_TRUE(model.ok());
  v1::TokenizeRequest request;
  request.set_text(std::string(model->text_bytes_max + 1, 'x'));
  v1::TokenizeResponse response;
  grpc::ClientContext context;

  const grpc::Status status = stub->Tokenize(&context, request, &response);

  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), StartsWith("text: "));
}

TEST_F(RouterServiceTest, FullTextPoolSaysWhenToComeBack) {
  text_jobs_max = 0;
  StartRouter({"127.0.0.1:1"});
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text("hi");
  v1::TokenizeResponse response;

  const grpc::Status status = stub->Tokenize(&context, request, &response);
  const Reply reply = Call(Ask());

  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("retry-after-ms"), 1u);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(reply.retry_after, "1000");
  ExpectOnlyTrailers(reply);
}

TEST_F(RouterServiceTest, ModelIsThatOfTheFolderAndOfTheWorkers) {
  FakeWorker worker({});
  StartRouter({worker.address()});
  ASSERT_TRUE(AwaitCluster([](const auto& cluster) {
    return cluster.workers_size() == 1 && cluster.workers(0).state() == "ready";
  }));
  grpc::ClientContext context;
  v1::GetModelResponse response;
  ASSERT_TRUE(stub->GetModel(&context, {}, &response).ok());

  EXPECT_EQ(response.model().architecture(), "LlamaForCausalLM");
  EXPECT_EQ(response.model().context_tokens(), 2048u);
  EXPECT_EQ(response.model().model_fingerprint(), "model");
  EXPECT_EQ(response.chat_format(), "chatml");
}

TEST_F(RouterServiceTest, MetricsCountWhatEnded) {
  FakeWorker worker({});
  StartRouter({worker.address()});
  ASSERT_TRUE(Call(Ask()).status.ok());
  v1::GenerateRequest bad = Ask();
  bad.set_n(3);
  (void)Call(bad);

  EXPECT_EQ(metrics.AddCounter(kRequestsTotal, "", {{"status", "OK"}}).Value(), 1);
  EXPECT_EQ(metrics.AddCounter(kRequestsTotal, "", {{"status", "INVALID_ARGUMENT"}}).Value(), 1);
  EXPECT_EQ(metrics.AddCounter(kTokensTotal, "", {{"phase", "generated"}}).Value(), 8);
}

TEST(RouterStartTest, SaysWhatIsWrong) {
  MetricsRegistry metrics;
  RouterOptions options;
  options.model = "deploy/demo_model/model";
  options.workers.decode = {"no port"};
  EXPECT_THAT(Router::Start(options, &metrics).status().ToString(), HasSubstr("no port"));
  options.workers.decode = {"127.0.0.1:1"};
  options.rpc.receive_message_bytes_max = 1000;
  EXPECT_THAT(Router::Start(options, &metrics).status().ToString(), HasSubstr("--message_limit"));
  options.model = "";
  EXPECT_THAT(Router::Start(options, &metrics).status().ToString(), HasSubstr("--model"));
}

}  // namespace
}  // namespace baton
