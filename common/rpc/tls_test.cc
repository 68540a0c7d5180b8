// Servers and channels over real connections on loopback: who may talk to whom.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/auth_context.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/rpc/testing/certificates.h"
#include "common/rpc/testing/unary_call.h"
#include "proto/worker.grpc.pb.h"

namespace baton {
namespace {

using ::testing::HasSubstr;

// One side's files and what became of them.
class Side {
 public:
  void Write(const TestIdentity& identity) const {
    files_.Write("cert.pem", identity.certificate);
    files_.Write("key.pem", identity.key);
  }
  void Trust(const TestAuthority& authority) const {
    files_.Write("ca.pem", authority.certificate());
  }
  std::shared_ptr<TlsFiles> Load(bool identity, bool authorities) const {
    const auto loaded = TlsFiles::Load({.certificate = identity ? files_.Path("cert.pem") : "",
                                        .key = identity ? files_.Path("key.pem") : "",
                                        .authorities = authorities ? files_.Path("ca.pem") : ""});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *loaded;
  }
  const TestFiles& files() const { return files_; }

 private:
  const TestFiles files_;
};

// A health check over a new connection: its status, or the name that the server's certificate has.
absl::StatusOr<std::string> Call(const std::string& address, const ChannelOptions& options) {
  grpc::ClientContext context;
  const absl::StatusOr<std::string> answer =
      UnaryCall(CreateChannel(address, options), kHealthCheck, "", context);
  if (!answer.ok()) return answer.status();
  const auto names = context.auth_context()->FindPropertyValues("x509_common_name");
  if (names.empty()) return "";
  return std::string(names[0].data(), names[0].size());
}

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    server_side.Write(authority.Sign({.name = "server"}));
    server_side.Trust(authority);
    client_side.Write(authority.Sign({.name = "client"}));
    client_side.Trust(authority);
  }

  void StartServer(bool mutual, const std::vector<grpc::Service*>& services = {}) {
    tls = server_side.Load(/*identity=*/true, /*authorities=*/mutual);
    RpcServerOptions options;
    options.tls = tls;
    auto started = RpcServer::Start(options, services);
    ASSERT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
  }
  ChannelOptions Channel(bool identity, const std::string& server_name = "") const {
    ChannelOptions options;
    options.tls = client_side.Load(identity, /*authorities=*/true);
    options.tls_server_name = server_name;
    return options;
  }
  absl::StatusOr<std::string> CallServer(bool identity) const {
    return Call(server->address(), Channel(identity));
  }
  static void ExpectRefused(const absl::StatusOr<std::string>& result, const char* reason = "") {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(reason));
  }

  const TestAuthority authority{"authority"};
  const Side server_side;
  const Side client_side;
  std::shared_ptr<TlsFiles> tls;  // The server's.
  std::unique_ptr<RpcServer> server;
};

TEST_F(TlsTest, ClientsThatKnowTheAuthorityAreServed) {
  StartServer(/*mutual=*/false);

  const auto name = CallServer(/*identity=*/false);

  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(*name, "server");
}

TEST_F(TlsTest, MutualTlsServesClientsWithACertificateAndNoOthers) {
  StartServer(/*mutual=*/true);

  EXPECT_TRUE(CallServer(/*identity=*/true).ok());
  ExpectRefused(CallServer(/*identity=*/false));

  const TestAuthority stranger("stranger");
  client_side.Write(stranger.Sign({.name = "client"}));
  ExpectRefused(CallServer(/*identity=*/true));
  client_side.Write(authority.Sign({.name = "client", .expired = true}));
  ExpectRefused(CallServer(/*identity=*/true));
  client_side.Write(authority.Sign({.name = "client"}));
  EXPECT_TRUE(CallServer(/*identity=*/true).ok()) << "the server has outlived them";
}

TEST_F(TlsTest, ServerOfAnotherAuthorityIsRefused) {
  const TestAuthority stranger("stranger");
  server_side.Write(stranger.Sign({.name = "server"}));
  StartServer(/*mutual=*/false);

  ExpectRefused(CallServer(/*identity=*/false), "certificate verify failed");
}

TEST_F(TlsTest, ServerWithAnExpiredCertificateIsRefused) {
  server_side.Write(authority.Sign({.name = "server", .expired = true}));
  StartServer(/*mutual=*/false);

  ExpectRefused(CallServer(/*identity=*/false), "certificate verify failed");
}

TEST_F(TlsTest, NameIsCheckedAndCanBeOverridden) {
  server_side.Write(authority.Sign({.name = "server", .names = "DNS:workers.example"}));
  StartServer(/*mutual=*/false);

  ExpectRefused(CallServer(/*identity=*/false), "127.0.0.1");
  ExpectRefused(Call(server->address(), Channel(false, "others.example")), "others.example");
  EXPECT_TRUE(Call(server->address(), Channel(false, "workers.example")).ok());
}

TEST_F(TlsTest, PlaintextAndTlsDoNotMix) {
  StartServer(/*mutual=*/false);
  const auto plain_server = RpcServer::Start({}, {});
  ASSERT_TRUE(plain_server.ok()) << plain_server.status();

  ExpectRefused(Call(server->address(), {}));
  ExpectRefused(Call((*plain_server)->address(), Channel(/*identity=*/false)));
  EXPECT_TRUE(Call((*plain_server)->address(), {}).ok());
}

TEST_F(TlsTest, NewConnectionsSeeNewCertificates) {
  StartServer(/*mutual=*/true);
  EXPECT_EQ(CallServer(true).value_or("nobody"), "server");

  server_side.Write(authority.Sign({.name = "next"}));
  EXPECT_EQ(CallServer(true).value_or("nobody"), "server") << "nobody has looked yet";
  tls->Reload();
  EXPECT_EQ(CallServer(true).value_or("nobody"), "next");

  server_side.files().Write("key.pem", "no key");
  tls->Reload();
  EXPECT_EQ(CallServer(true).value_or("nobody"), "next") << "a bad set must not replace a good one";
}

TEST_F(TlsTest, NewAuthoritiesDecideWhoIsServed) {
  StartServer(/*mutual=*/true);
  const TestAuthority next("next");
  const auto old_client = Channel(/*identity=*/true);
  client_side.Write(next.Sign({.name = "client"}));
  ExpectRefused(CallServer(/*identity=*/true));

  server_side.Trust(next);
  tls->Reload();

  EXPECT_TRUE(CallServer(/*identity=*/true).ok());
  ExpectRefused(Call(server->address(), old_client));
  EXPECT_FALSE(CallServer(/*identity=*/false).ok());
}

TEST_F(TlsTest, ChannelsUseWhatTheirFilesSayWhenTheyAreMade) {
  StartServer(/*mutual=*/true);
  const ChannelOptions options = Channel(/*identity=*/true);
  const TestAuthority next("next");
  server_side.Write(next.Sign({.name = "server"}));
  tls->Reload();
  ExpectRefused(Call(server->address(), options), "certificate verify failed");

  client_side.Trust(next);
  options.tls->Reload();

  EXPECT_TRUE(Call(server->address(), options).ok());
}

// Answers every command with an event.
class EchoWorker final : public v1::Worker::CallbackService {
 public:
  class Reactor final : public grpc::ServerBidiReactor<v1::Command, v1::Event> {
   public:
    Reactor() { StartRead(&command_); }
    void OnReadDone(bool ok) override {
      if (ok) {
        StartWrite(&event_);
      } else {
        Finish(grpc::Status::OK);
      }
    }
    void OnWriteDone(bool ok) override {
      if (ok) StartRead(&command_);
    }
    void OnDone() override { delete this; }

   private:
    v1::Command command_;
    v1::Event event_;
  };
  grpc::ServerBidiReactor<v1::Command, v1::Event>* Session(grpc::CallbackServerContext*) override {
    return new Reactor;
  }
};

TEST_F(TlsTest, StreamsOutliveTheirCertificates) {
  EchoWorker worker;
  StartServer(/*mutual=*/true, {&worker});
  const auto stub = v1::Worker::NewStub(CreateChannel(server->address(), Channel(true)));
  grpc::ClientContext context;
  const auto stream = stub->Session(&context);
  v1::Event event;
  ASSERT_TRUE(stream->Write({}) && stream->Read(&event));

  const TestAuthority next("next");
  server_side.Write(next.Sign({.name = "next"}));
  server_side.Trust(next);
  tls->Reload();
  ExpectRefused(CallServer(/*identity=*/true));

  EXPECT_TRUE(stream->Write({}) && stream->Read(&event));
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace baton
