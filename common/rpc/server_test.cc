#include "common/rpc/server.h"

#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/rpc/channel.h"
#include "common/rpc/testing/unary_call.h"
#include "proto/worker.grpc.pb.h"

namespace baton {
namespace {

using testing::HasSubstr;

// A client of HTTP/2 that says hello and then reads, but answers nothing.
class SilentClient {
 public:
  explicit SilentClient(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    // The preface, empty settings, and that the server's settings are taken (RFC 9113, 3.4).
    constexpr char kHello[] =
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        "\0\0\0\4\0\0\0\0\0"
        "\0\0\0\4\1\0\0\0";
    EXPECT_EQ(write(fd_, kHello, sizeof(kHello)), static_cast<ssize_t>(sizeof(kHello)));
  }
  ~SilentClient() { close(fd_); }
  SilentClient(const SilentClient&) = delete;
  SilentClient& operator=(const SilentClient&) = delete;

  // Reads for so long; false if the server closes the connection before.
  bool StaysOpenFor(Duration duration) {
    for (const Instant end = Now() + duration; Now() < end;) {
      pollfd readable = {.fd = fd_, .events = POLLIN, .revents = 0};
      const double left_ms = std::max(0.0, ToMilliseconds(end - Now()));
      if (poll(&readable, 1, static_cast<int>(left_ms) + 1) <= 0) continue;
      char buffer[1024];
      const ssize_t count = read(fd_, buffer, sizeof(buffer));
      if (count <= 0) return false;
      received_.append(buffer, static_cast<size_t>(count));
    }
    return true;
  }
  // A frame of 8 bytes, type 6, without flags, of the connection.
  bool was_pinged() const {
    return received_.find(std::string("\0\0\10\6\0\0\0\0\0", 9)) != std::string::npos;
  }
  // A frame of type 7, without flags, of the connection.
  bool was_told_to_leave() const {
    return received_.find(std::string("\7\0\0\0\0\0", 6)) != std::string::npos;
  }

 private:
  const int fd_;
  std::string received_;
};

// Goal: clients whose connections are looked at every 5 s only, as idle ones of gRPC are, keep
// them.
TEST(RpcServerTest, GivesIdleClientsTimeToAnswerItsPings) {
  RpcServerOptions options;
  options.keepalive_interval = std::chrono::seconds(1);
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  SilentClient client(static_cast<uint16_t>((*server)->port()));

  EXPECT_TRUE(client.StaysOpenFor(std::chrono::seconds(10)));

  EXPECT_TRUE(client.was_pinged());
}

TEST(RpcServerTest, HealthFollowsServingAndDraining) {
  auto server = RpcServer::Start({}, {});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string& address = (*server)->address();
  EXPECT_EQ(*UnaryCall(CreateChannel(address), kHealthCheck, ""), kNotServing);

  (*server)->SetServing(true);
  EXPECT_EQ(*UnaryCall(CreateChannel(address), kHealthCheck, ""), kServing);

  (*server)->BeginDrain();
  EXPECT_EQ(*UnaryCall(CreateChannel(address), kHealthCheck, ""), kNotServing);
  (*server)->SetServing(true);
  EXPECT_EQ(*UnaryCall(CreateChannel(address), kHealthCheck, ""), kNotServing)
      << "a drain is for good";
  EXPECT_TRUE((*server)->draining());

  (*server)->Shutdown(Duration::zero());
  EXPECT_EQ(UnaryCall(CreateChannel(address), kHealthCheck, "").status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(RpcServerTest, UsedPortIsOneClearError) {
  auto first = RpcServer::Start({}, {});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_GT((*first)->port(), 0);
  RpcServerOptions options;
  options.listen = (*first)->address();

  const auto second = RpcServer::Start(options, {});

  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr((*first)->address()));
  EXPECT_THAT(second.status().message(), HasSubstr("in use"));
}

TEST(RpcServerTest, BadAddressIsOneClearError) {
  RpcServerOptions options;
  options.listen = "8080";
  EXPECT_EQ(RpcServer::Start(options, {}).status().code(), absl::StatusCode::kInvalidArgument);
  options.listen = "203.0.113.7:0";
  EXPECT_EQ(RpcServer::Start(options, {}).status().code(), absl::StatusCode::kUnavailable);
}

TEST(RpcServerTest, ReflectionIsThere) {
  auto server = RpcServer::Start({}, {});
  ASSERT_TRUE(server.ok()) << server.status();

  // The method streams; a unary call of it with one list_services request (field 7) is answered
  // once.
  const auto answer =
      UnaryCall(CreateChannel((*server)->address()),
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");

  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(*answer, HasSubstr("grpc.reflection.v1alpha.ServerReflection"));
}

// Accepts a stream and ends it only when it is cancelled.
class EndlessWorker final : public v1::Worker::CallbackService {
 public:
  class Reactor final : public grpc::ServerBidiReactor<v1::Command, v1::Event> {
   public:
    Reactor() { StartSendInitialMetadata(); }
    void OnCancel() override { Finish(grpc::Status::CANCELLED); }
    void OnDone() override { delete this; }
  };
  grpc::ServerBidiReactor<v1::Command, v1::Event>* Session(grpc::CallbackServerContext*) override {
    return new Reactor;
  }
};

TEST(RpcServerTest, ShutdownCancelsWhatDoesNotEndInTime) {
  EndlessWorker worker;
  auto server = RpcServer::Start({}, {&worker});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::Worker::NewStub(CreateChannel((*server)->address()));
  grpc::ClientContext context;
  const auto stream = stub->Session(&context);
  stream->WaitForInitialMetadata();

  (*server)->Shutdown(std::chrono::milliseconds(10));

  v1::Event event;
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_FALSE(stream->Finish().ok());
}

// Goal: clients of a server that drains go to another one with their next calls, and those that run
// go on.
TEST(RpcServerTest, ClientsTakeTheirNextCallsElsewhere) {
  EndlessWorker worker;
  auto first = RpcServer::Start({}, {&worker});
  auto second = RpcServer::Start({}, {});
  ASSERT_TRUE(first.ok() && second.ok());
  const auto channel =
      CreateChannel(absl::StrCat("ipv4:", (*first)->address(), ",", (*second)->address()));
  // Empty: it was cancelled, because it came before the client knew.
  const auto peer_of_a_call = [&] {
    grpc::ClientContext context;
    const auto answer = UnaryCall(channel, kHealthCheck, "", context);
    EXPECT_TRUE(answer.ok() || absl::IsCancelled(answer.status())) << answer.status();
    return answer.ok() ? context.peer() : "";
  };
  const auto stub = v1::Worker::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->Session(&context);
  stream->WaitForInitialMetadata();
  EXPECT_EQ(peer_of_a_call(), "ipv4:" + (*first)->address());

  (*first)->StopListening();

  const Instant end = Now() + std::chrono::seconds(20);
  while (peer_of_a_call() != "ipv4:" + (*second)->address()) ASSERT_LT(Now(), end);
  EXPECT_TRUE(stream->Write(v1::Command()));
  (*first)->Shutdown(std::chrono::milliseconds(10));
  v1::Event event;
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_FALSE(stream->Finish().ok());
}

TEST(RpcServerTest, OldConnectionsAreGivenUp) {
  RpcServerOptions options;
  options.connection_age_max = std::chrono::milliseconds(100);
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  SilentClient client(static_cast<uint16_t>((*server)->port()));

  for (const Instant end = Now() + std::chrono::seconds(20); !client.was_told_to_leave();) {
    ASSERT_LT(Now(), end);
    static_cast<void>(client.StaysOpenFor(std::chrono::milliseconds(10)));
  }
}

TEST(RpcServerTest, MemoryOfMessagesIsBounded) {
  RpcServerOptions options;
  options.memory_bytes_max = 1 << 20;
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->SetServing(true);
  const auto channel = CreateChannel((*server)->address());

  const std::string large(32 << 20, '\xff');
  EXPECT_EQ(UnaryCall(channel, kHealthCheck, large).status().code(),
            absl::StatusCode::kResourceExhausted);
  // It goes on when the memory has come back.
  const Instant end = Now() + std::chrono::seconds(20);
  const auto serves = [&channel] {
    const auto answer = UnaryCall(channel, kHealthCheck, "");
    return answer.ok() && *answer == kServing;
  };
  while (!serves()) ASSERT_LT(Now(), end);
}

TEST(RpcServerTest, MessageOverTheLimitIsRefused) {
  RpcServerOptions options;
  options.receive_message_bytes_max = 100;
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();

  const std::string request = "\x0a\x7f" + std::string(127, 'x');  // HealthCheckRequest.service

  EXPECT_EQ(UnaryCall(CreateChannel((*server)->address()), kHealthCheck, request).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace baton
