// The whole router over real gRPC: what it refuses, and clients that do not read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "router/fake_worker.h"
#include "router/router.h"
#include "router/testing/router_service_fixture.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

class RouterRefusalsTest : public RouterServiceFixture {
 protected:
  // A call that takes a place in the router's queue until it goes.
  class WaitingCall {
   public:
    explicit WaitingCall(RouterRefusalsTest* test)
        : reader_(test->stub->Generate(&context_, Ask())) {
      EXPECT_TRUE(
          test->AwaitCluster([](const auto& cluster) { return cluster.requests_queued() == 1; }));
    }
    ~WaitingCall() {
      context_.TryCancel();
      (void)reader_->Finish();
    }

   private:
    grpc::ClientContext context_;
    const std::unique_ptr<Reader> reader_;
  };
};

TEST_F(RouterRefusalsTest, FullQueueSaysWhenToComeBack) {
  CoreOptions core;
  core.queue.requests = 1;
  StartRouter({"127.0.0.1:1"}, core);
  const WaitingCall first(this);

  const Reply reply = Call(Ask());

  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("queue is full"));
  EXPECT_EQ(reply.retry_after, "1000");
  ExpectOnlyTrailers(reply);
}

TEST_F(RouterRefusalsTest, RefusedCallIsRepeatedByAClientThatHasARetryPolicy) {
  CoreOptions core;
  core.queue.requests = 1;
  StartRouter({"127.0.0.1:1"}, core);
  const WaitingCall first(this);
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{"name": [{}], "retryPolicy": {
      "maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]})");
  const auto retrying = v1::Inference::NewStub(
      grpc::CreateCustomChannel(router->address(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  const auto refused = retrying->Generate(&context, Ask());
  Reply reply;

  Read(refused.get(), SIZE_MAX, &reply);
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  Counter& ended = metrics.AddCounter(kRequestsTotal, "", {{"status", "RESOURCE_EXHAUSTED"}});
  EXPECT_EQ(ended.Value(), 3);
}

TEST_F(RouterRefusalsTest, RequestThatWaitsForAWorkerIsStarted) {
  StartRouter({"127.0.0.1:1"});
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Ask());
  v1::GenerateResponse response;

  EXPECT_TRUE(reader->Read(&response));
  EXPECT_TRUE(response.has_started());
  context.TryCancel();
  (void)reader->Finish();
}

TEST_F(RouterRefusalsTest, AnswerThatIsCompleteOnArrivalIsStartedAndFinished) {
  StartRouter({"127.0.0.1:1"});
  v1::GenerateRequest request = Ask(1);
  request.add_generated_ids(400);

  const Reply reply = Call(request);

  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.started.size(), 1u);
  EXPECT_EQ(reply.finished.size(), 1u);
}

TEST_F(RouterRefusalsTest, CallBeyondTheStreamsSaysWhenToComeBack) {
  streams_max = 1;
  StartRouter({"127.0.0.1:1"});
  const WaitingCall first(this);

  const Reply reply = Call(Ask());

  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("1 calls inside"));
  EXPECT_EQ(reply.retry_after, "1000");
  ExpectOnlyTrailers(reply);
}

TEST_F(RouterRefusalsTest, CallStaysInsideUntilItsEndIsReadOrTheTimeForThatIsOver) {
  streams_max = 1;
  client_read_max = seconds(2);
  FakeWorker worker({.event_tokens = 50});
  StartRouter({worker.address()});
  const auto slow = SlowClient();
  grpc::ClientContext context;
  const auto reader = slow->Generate(&context, Ask(2000));
  const auto at_rest = [](const auto& cluster) { return cluster.requests_running() == 0; };
  ASSERT_TRUE(worker.Await([](const FakeWorker::Seen& seen) { return seen.admits == 1; }));
  ASSERT_TRUE(AwaitCluster(at_rest));

  EXPECT_THAT(Call(Ask()).status.error_message(), HasSubstr("1 calls inside"));
  EXPECT_TRUE(AwaitRoom());
  Reply reply;
  Read(reader.get(), SIZE_MAX, &reply);
  EXPECT_FALSE(reader->Finish().ok()) << "the rest was not there any more";
  EXPECT_TRUE(reply.finished.empty());
}

TEST_F(RouterRefusalsTest, SlowClientGetsItsStatusAndNoneOfWhatItHasNotRead) {
  CoreOptions core;
  core.client_buffer_bytes_max = 4000;
  FakeWorker worker({.event_tokens = 50});
  StartRouter({worker.address()}, core);
  const auto slow = SlowClient();
  grpc::ClientContext context;
  const auto reader = slow->Generate(&context, Ask(2000));
  ASSERT_TRUE(worker.Await([](const FakeWorker::Seen& seen) { return seen.cancels == 1; }));
  ASSERT_TRUE(AwaitCluster([](const auto& cluster) { return cluster.requests_running() == 0; }));

  Reply reply;
  Read(reader.get(), SIZE_MAX, &reply);
  const grpc::Status status = reader->Finish();

  EXPECT_THAT(status.error_message(), HasSubstr("reads too slowly"));
  EXPECT_LT(reply.ids.size(), 500u);
}

TEST_F(RouterRefusalsTest, FailedCallOfAClientThatNeverReadsIsCut) {
  streams_max = 1;
  client_read_max = milliseconds(100);
  CoreOptions core;
  core.client_buffer_bytes_max = 4000;
  FakeWorker worker({.hold_after = 200, .event_tokens = 50});
  StartRouter({worker.address()}, core);
  const auto slow = SlowClient();
  grpc::ClientContext context;
  const auto reader = slow->Generate(&context, Ask(2000));
  // The first message goes out whoever reads it. A call that failed while only that is under way
  // would get its status at once: the next one must be, too, when the rest comes.
  v1::GenerateResponse first;
  ASSERT_TRUE(reader->Read(&first));
  for (int call = 0; call < 10; ++call) {
    ASSERT_TRUE(AwaitCluster([](const auto& status) { return status.requests_running() == 1; }));
  }
  worker.Release();
  ASSERT_TRUE(worker.Await([](const FakeWorker::Seen& seen) { return seen.cancels == 1; }));

  EXPECT_TRUE(AwaitRoom());
  Reply reply;
  Read(reader.get(), SIZE_MAX, &reply);
  EXPECT_THAT(reader->Finish().error_message(), Not(HasSubstr("too slowly"))) << "it was not cut";
}

}  // namespace
}  // namespace baton
