// Goal: a worker whose device is lost in the middle of its work says so and gets out of the way:
// requests come back as ones to try elsewhere, sessions end, health says NOT_SERVING. Method: a
// whole worker in this process, whose model stops computing when it is told to, and its router
// played by the test.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "common/model/testing/tiny_model.h"
#include "common/rpc/channel.h"
#include "common/rpc/testing/unary_call.h"
#include "common/worker/worker.h"
#include "decode_worker/decode_engine.h"
#include "proto/worker.grpc.pb.h"

namespace baton {
namespace {

using testing::HasSubstr;

constexpr uint32_t kContextTokens = 1u << 16;

// Another model until it is told to be lost, which shows, as with a GPU, in the next step.
class LosableModel final : public Model {
 public:
  LosableModel(std::unique_ptr<Model> model, const std::atomic<bool>* lost)
      : model_(std::move(model)), lost_(lost) {}

  const ModelConfig& config() const override { return model_->config(); }
  const std::string& fingerprint() const override { return model_->fingerprint(); }
  const std::string& numerics() const override { return model_->numerics(); }
  uint64_t parameter_count() const override { return model_->parameter_count(); }
  absl::Status Forward(std::span<const BatchRow> rows, KvArena& cache, std::span<float> logits,
                       const LayerDone& layer_done) override {
    gone_ = gone_ || *lost_;
    return gone_ ? Lost() : model_->Forward(rows, cache, logits, layer_done);
  }
  absl::Status Health() const override { return gone_ ? Lost() : absl::OkStatus(); }

 private:
  static absl::Status Lost() { return absl::UnavailableError("the GPU has fallen off the bus"); }

  const std::unique_ptr<Model> model_;
  const std::atomic<bool>* const lost_;
  bool gone_ = false;  // Engine thread.
};

class DeviceLostTest : public testing::Test {
 protected:
  DeviceLostTest() {
    std::filesystem::create_directories(folder_);
    EXPECT_TRUE(WriteTinyModel(folder_, {.context_tokens = kContextTokens}).ok());
    EngineParts parts = EngineParts::Create({.model = folder_, .threads = 1}).value();
    parts.model = std::make_unique<LosableModel>(std::move(parts.model), &lost_);
    parts.executor = std::make_unique<Executor>(parts.model.get(), parts.arena.get());
    WorkerOptions options;
    options.hello.set_role(v1::ROLE_DECODE);
    options.hello.set_local_prefill(true);
    worker_ = Worker::Start(options, std::move(parts), &MakeEngine, &metrics_).value();
  }
  ~DeviceLostTest() override { std::filesystem::remove_all(folder_); }

  static absl::StatusOr<std::unique_ptr<WorkerEngine>> MakeEngine(const EngineContext& context) {
    return std::make_unique<DecodeEngine>(DecodeEngineOptions{.incarnation = context.incarnation},
                                          context.parts->executor.get(), context.parts->pool.get(),
                                          context.events, context.transfers, Now,
                                          [] { return uint64_t{1}; });
  }

  std::string Health() const {
    return UnaryCall(CreateChannel(worker_->address()), kHealthCheck, "").value();
  }

  const std::string folder_ = testing::TempDir() + std::to_string(getpid()) + "device_lost_test";
  std::atomic<bool> lost_ = false;
  MetricsRegistry metrics_;
  std::unique_ptr<Worker> worker_;
};

// The router's end of a session.
class Session {
 public:
  explicit Session(const std::string& address)
      : stub_(v1::Worker::NewStub(CreateChannel(address))), stream_(stub_->Session(&context_)) {
    v1::Command command;
    command.mutable_hello()->set_router_incarnation(7);
    command.mutable_hello()->set_session_number(1);
    stream_->Write(command);
  }

  // Some answer that goes on for long.
  void Admit(uint64_t request) {
    v1::Command command;
    command.mutable_admit()->set_local_prefill(true);
    v1::Work& work = *command.mutable_admit()->mutable_work();
    work.set_request(request);
    work.add_tokens(1);
    work.set_prompt_tokens(1);
    work.set_total_tokens_max(kContextTokens);
    work.mutable_sampling()->set_temperature(0);
    stream_->Write(command);
  }
  // The next event that `is` true of; false if the session ends before. Says meanwhile that it is
  // there.
  template <typename Is>
  bool Await(v1::Event* event, const Is& is) {
    v1::Command ping;
    ping.mutable_ping();
    while (stream_->Read(event)) {
      if (is(*event)) return true;
      stream_->Write(ping);
    }
    return false;
  }
  grpc::Status Finish() {
    v1::Event event;
    while (stream_->Read(&event)) {
    }
    return stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::Command, v1::Event>> stream_;
};

TEST_F(DeviceLostTest, WorkComesBackAndNoMoreIsTaken) {
  Session session(worker_->address());
  session.Admit(5);
  v1::Event event;
  ASSERT_TRUE(session.Await(&event, [](const v1::Event& e) { return e.has_tokens(); }));

  lost_ = true;

  ASSERT_TRUE(session.Await(&event, [](const v1::Event& e) { return e.has_failed(); }));
  EXPECT_EQ(event.failed().request(), 5u);
  EXPECT_TRUE(event.failed().retryable()) << "another worker can go on";
  const grpc::Status end = session.Finish();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(end.error_message(), HasSubstr("fallen off the bus"));
  EXPECT_EQ(Health(), kNotServing);

  const grpc::Status again = Session(worker_->address()).Finish();

  EXPECT_EQ(again.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(again.error_message(), HasSubstr("fallen off the bus"));
}

}  // namespace
}  // namespace baton
