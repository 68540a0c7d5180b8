// Goal: with TLS and API keys on, nobody without a certificate and a key gets anything from a
// cluster; both are exchanged while it serves; and nothing secret is in its logs.
// Method: real processes on loopback, mutual TLS on every port, certificates made here.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/model/testing/tiny_model.h"
#include "common/rpc/channel.h"
#include "common/rpc/status_codec.h"
#include "common/rpc/testing/certificates.h"
#include "common/tokenizer/tokenizer.h"
#include "proto/worker.grpc.pb.h"
#include "tests/support/cluster.h"

namespace baton {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr Duration kTimeout = std::chrono::seconds(60);
constexpr char kKey[] = "alices-key-4711-0815";
constexpr char kNewKey[] = "alices-new-key-0815-4711";
constexpr char kPrompt[] = "marzipan over Sevenoaks. Once upon a time";

std::string ReadLog(const Process& process) {
  std::ostringstream text;
  text << std::ifstream(process.log()).rdbuf();
  return text.str();
}

class SecurityTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyModel(model_.path(), {.context_tokens = 2048}).ok());
    WriteIdentities(cluster_authority_, client_authority_);
    WriteKeys(kKey);
  }
  void WriteKeys(const std::string& key) const {
    files_.Write("keys", absl::StrCat("alice ", key, "\n"));
  }
  // As deploy/make_certificates.sh lays them out: clients have an authority of their own, so that
  // none of them is taken for a router.
  void WriteIdentities(const TestAuthority& cluster, const TestAuthority& clients) const {
    files_.Write("cluster/ca.pem", cluster.certificate());
    files_.Write("clients/ca.pem", clients.certificate());
    Write("cluster/router", cluster.Sign({.name = "router"}));
    Write("cluster/worker", cluster.Sign({.name = "worker", .names = "DNS:worker"}));
    Write("clients/client", clients.Sign({.name = "client"}));
  }
  void Write(const std::string& name, const TestIdentity& identity) const {
    files_.Write(name + ".pem", identity.certificate);
    files_.Write(name + ".key", identity.key);
  }
  std::string Path(const std::string& name) const { return files_.Path(name); }

  std::vector<std::string> ServerFlags(const std::string& name, const std::string& peers) const {
    return {"--tls_cert",      Path(name + ".pem"),     "--tls_key",   Path(name + ".key"),
            "--tls_client_ca", Path(peers + "/ca.pem"), "--log_level", "debug"};
  }
  void StartCluster(const std::string& model = "") {
    std::vector<std::string> router = ServerFlags("cluster/router", "clients");
    const std::vector<std::string> more = {"--worker_tls_ca",
                                           Path("cluster/ca.pem"),
                                           "--worker_tls_cert",
                                           Path("cluster/router.pem"),
                                           "--worker_tls_key",
                                           Path("cluster/router.key"),
                                           "--worker_tls_server_name",
                                           "worker",
                                           "--api_keys",
                                           Path("keys")};
    router.insert(router.end(), more.begin(), more.end());
    auto cluster = Cluster::Start({.model = model.empty() ? model_.path() : model,
                                   .prefill = 1,
                                   .decode = 1,
                                   .worker_flags = ServerFlags("cluster/worker", "cluster"),
                                   .decode_flags = {},
                                   .router_flags = router,
                                   .tls = Tls(Path("cluster/ca.pem"), "clients/client"),
                                   .api_key = kKey});
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
  }
  // `name`: whose certificate is shown; empty: none.
  std::shared_ptr<TlsFiles> Tls(const std::string& authorities, const std::string& name) const {
    const auto tls = TlsFiles::Load({.certificate = name.empty() ? "" : Path(name + ".pem"),
                                     .key = name.empty() ? "" : Path(name + ".key"),
                                     .authorities = authorities});
    EXPECT_TRUE(tls.ok()) << tls.status();
    return *tls;
  }

  // What one call over a new connection gives, and the name of the router's certificate.
  struct Reached {
    absl::Status status;
    std::string name;
  };
  Reached Reach(std::shared_ptr<TlsFiles> tls, const std::string& key) const {
    const auto stub = v1::Inference::NewStub(
        CreateChannel(cluster_->router_address(), {.tls = std::move(tls), .tls_server_name = {}}));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    v1::TokenizeRequest request;
    request.set_text("text");
    v1::TokenizeResponse response;
    Reached reached{.status = FromGrpcStatus(stub->Tokenize(&context, request, &response)),
                    .name = ""};
    if (const auto auth = context.auth_context(); auth != nullptr) {
      for (const grpc::string_ref& name : auth->FindPropertyValues("x509_common_name")) {
        reached.name = std::string(name.data(), name.size());
      }
    }
    return reached;
  }
  absl::StatusCode CodeOf(std::shared_ptr<TlsFiles> tls, const std::string& key) const {
    return Reach(std::move(tls), key).status.code();
  }
  static ChannelOptions Named(std::shared_ptr<TlsFiles> tls, const std::string& name) {
    ChannelOptions options;
    options.tls = std::move(tls);
    options.tls_server_name = name;
    return options;
  }
  // A session with a worker: how it ends.
  static absl::Status OpenSession(const std::string& address, const ChannelOptions& options) {
    const auto stub = v1::Worker::NewStub(CreateChannel(address, options));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    const auto stream = stub->Session(&context);
    v1::Command command;
    command.mutable_hello()->set_router_incarnation(1);
    command.mutable_hello()->set_session_number(1);
    v1::Event event;
    if (stream->Write(command) && stream->Read(&event)) {
      context.TryCancel();
      return absl::OkStatus();
    }
    return FromGrpcStatus(stream->Finish());
  }
  // Tries until `reached` holds.
  template <typename Condition>
  bool Await(const Condition& reached) const {
    for (const Instant end = Now() + kTimeout; Now() < end;) {
      if (reached()) return true;
      // Between two questions to another process: there is nothing to be woken by.
      absl::Notification().WaitForNotificationWithTimeout(absl::Milliseconds(50));
    }
    return false;
  }

  const TemporaryFolder model_;
  const TestFiles files_;
  const TestAuthority cluster_authority_{"cluster"};
  const TestAuthority client_authority_{"clients"};
  std::unique_ptr<Cluster> cluster_;
};

v1::GenerateRequest Ask(uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_prompt(kPrompt);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_seed(7);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

TEST_F(SecurityTest, RouterLetsInWhoHasACertificateAndAKey) {
  ASSERT_NO_FATAL_FAILURE(StartCluster());
  const TestAuthority stranger("stranger");
  files_.Write("other_ca.pem", stranger.certificate());
  Write("stranger", stranger.Sign({.name = "client"}));
  Write("expired", client_authority_.Sign({.name = "client", .expired = true}));
  const std::string ca = Path("cluster/ca.pem");

  const Answer answer = cluster_->Generate(Ask(20));

  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.tokens.size(), 20u);
  EXPECT_EQ(CodeOf(Tls(ca, "clients/client"), kKey), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf(Tls(ca, "clients/client"), ""), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf(Tls(ca, "clients/client"), "a-key-that-is-unknown"),
            absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf(nullptr, kKey), absl::StatusCode::kUnavailable) << "plaintext";
  EXPECT_EQ(CodeOf(Tls(ca, ""), kKey), absl::StatusCode::kUnavailable) << "no certificate";
  EXPECT_EQ(CodeOf(Tls(ca, "stranger"), kKey), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(Tls(ca, "expired"), kKey), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(Tls(Path("other_ca.pem"), "clients/client"), kKey),
            absl::StatusCode::kUnavailable);
}

TEST_F(SecurityTest, WorkersLetInWhoHasACertificate) {
  ASSERT_NO_FATAL_FAILURE(StartCluster());
  const auto status = cluster_->Status();
  ASSERT_TRUE(status.ok()) << status.status();
  const std::string ca = Path("cluster/ca.pem");

  for (const v1::WorkerStatus& worker : status->workers()) {
    const std::string& address = worker.address();
    EXPECT_TRUE(OpenSession(address, Named(Tls(ca, "cluster/router"), "worker")).ok());
    EXPECT_TRUE(absl::IsUnavailable(OpenSession(address, {})));
    EXPECT_TRUE(absl::IsUnavailable(OpenSession(address, Named(Tls(ca, ""), "worker"))));
    EXPECT_TRUE(
        absl::IsUnavailable(OpenSession(address, Named(Tls(ca, "clients/client"), "worker"))))
        << "a client of the router";
    EXPECT_TRUE(absl::IsUnavailable(OpenSession(address, Named(Tls(ca, "cluster/router"), ""))))
        << "the certificate has a name, not the address";
  }
}

TEST_F(SecurityTest, CertificatesAndKeysAreExchangedWhileStreamsRun) {
  ASSERT_NO_FATAL_FAILURE(StartCluster());
  const auto status = cluster_->Status();
  ASSERT_TRUE(status.ok()) << status.status();
  const TestAuthority next_cluster("next cluster");
  const TestAuthority next_clients("next clients");
  bool exchanged = false;
  const auto exchange = [&](const v1::Delta&) {
    if (exchanged) return true;
    exchanged = true;
    WriteIdentities(next_cluster, next_clients);
    WriteKeys(kNewKey);
    const auto new_client = Tls(Path("cluster/ca.pem"), "clients/client");
    EXPECT_TRUE(Await([&] { return Reach(new_client, kNewKey).status.ok(); }))
        << cluster_->router().LogTail();
    return true;
  };

  const Answer answer = cluster_->Generate(Ask(1500 / BATON_TEST_SLOWNESS), 3 * kTimeout, exchange);

  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.tokens.size(), 1500u / BATON_TEST_SLOWNESS);
  EXPECT_EQ(CodeOf(Tls(Path("cluster/ca.pem"), "clients/client"), kKey),
            absl::StatusCode::kUnauthenticated);
  for (const v1::WorkerStatus& worker : status->workers()) {
    EXPECT_TRUE(Await([&] {
      return OpenSession(worker.address(),
                         Named(Tls(Path("cluster/ca.pem"), "cluster/router"), "worker"))
          .ok();
    })) << worker.address();
  }
  // A worker that starts has certificates of the new authority only; so has the router's next
  // session.
  cluster_->decode(0).Signal(SIGKILL);
  ASSERT_TRUE(cluster_->decode(0).Wait(kTimeout).ok());
  ASSERT_TRUE(cluster_->RestartDecode(0).ok());
  const auto generate = [&] {
    const auto stub = v1::Inference::NewStub(CreateChannel(
        cluster_->router_address(),
        {.tls = Tls(Path("cluster/ca.pem"), "clients/client"), .tls_server_name = {}}));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    context.AddMetadata("authorization", absl::StrCat("Bearer ", kNewKey));
    const auto reader = stub->Generate(&context, Ask(4));
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish().ok();
  };
  EXPECT_TRUE(Await(generate)) << cluster_->router().LogTail();
}

TEST_F(SecurityTest, BadReplacementsKeepWhatIsThere) {
  ASSERT_NO_FATAL_FAILURE(StartCluster());
  files_.Write("cluster/router.pem", "no certificate");
  files_.Write("keys", "alice\n");
  const auto refused_both = [&] {
    const std::string log = ReadLog(cluster_->router());
    return log.find("new certificates refused") != std::string::npos &&
           log.find("new API keys refused") != std::string::npos;
  };

  ASSERT_TRUE(Await(refused_both));

  const Reached reached = Reach(Tls(Path("cluster/ca.pem"), "clients/client"), kKey);
  EXPECT_TRUE(reached.status.ok()) << reached.status;
  EXPECT_EQ(reached.name, "router");
}

// Words that would stand in a log one by one if tokens were logged as they come.
std::vector<std::string> LongWords(const std::string& text) {
  std::vector<std::string> words = absl::StrSplit(text, absl::ByAnyChar(" .,:;!?\"'\n"));
  std::erase_if(words, [](const std::string& word) { return word.size() < 5; });
  return words;
}

// A text that has the first ids one after the other, however they are divided.
auto HasIds(const std::vector<TokenId>& ids) {
  const std::vector<TokenId> first(ids.begin(), ids.begin() + 4);
  return ::testing::ContainsRegex(absl::StrJoin(first, "[^0-9]{1,12}"));
}

// With the demo model, which writes words.
TEST_F(SecurityTest, NothingSecretIsLogged) {
  ASSERT_NO_FATAL_FAILURE(StartCluster("deploy/demo_model/model"));
  constexpr char kWrongKey[] = "a-wrong-key-0815-4711";
  v1::GenerateRequest refused = Ask(8);
  refused.mutable_sampling()->set_top_p(7);

  const Answer answer = cluster_->Generate(Ask(64));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_TRUE(absl::IsInvalidArgument(cluster_->Generate(refused).status));
  const Reached stranger = Reach(Tls(Path("cluster/ca.pem"), "clients/client"), kWrongKey);
  EXPECT_TRUE(absl::IsUnauthenticated(stranger.status));
  cluster_->Generate(Ask(400), kTimeout, [](const v1::Delta&) { return false; });
  ASSERT_TRUE(cluster_->WaitUntil(Cluster::AtRest));

  const std::vector<std::string> words = LongWords(answer.text);
  ASSERT_GE(words.size(), 5u) << answer.text;
  const auto tokenizer = Tokenizer::Load("deploy/demo_model/model");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<TokenId> prompt_ids = (*tokenizer)->Encode(kPrompt, false).value();
  ASSERT_GE(prompt_ids.size(), 4u);
  for (Process* process : {&cluster_->router(), &cluster_->prefill(0), &cluster_->decode(0)}) {
    const std::string log = ReadLog(*process);
    EXPECT_THAT(log, HasSubstr(answer.started.request_id())) << "this is not the log";
    for (const std::string& secret : {std::string(kKey), std::string(kWrongKey),
                                      std::string("marzipan"), std::string("PRIVATE KEY")}) {
      EXPECT_THAT(log, Not(HasSubstr(secret)));
    }
    for (const std::string& word : words) EXPECT_THAT(log, Not(HasSubstr(word)));
    EXPECT_THAT(log, Not(HasIds(prompt_ids)));
    EXPECT_THAT(log, Not(HasIds(answer.tokens)));
  }
  EXPECT_THAT(ReadLog(cluster_->router()), HasSubstr("key=alice"));
}

class ProgramSecurityTest : public SecurityTest {
 protected:
  struct Ended {
    int code = -1;
    std::string log;
  };
  Ended Run(const std::vector<std::string>& command) const {
    const std::string log = Path("log");
    std::ofstream(log).close();
    auto process = Process::Start(command, log);
    EXPECT_TRUE(process.ok()) << process.status();
    const auto code = (*process)->Wait(kTimeout);
    EXPECT_TRUE(code.ok()) << code.status();
    return {.code = code.value_or(-1), .log = ReadLog(**process)};
  }
  static std::string Program(const std::string& name) { return BinaryFolder() + "/" + name; }
};

TEST_F(ProgramSecurityTest, HalfASetEndsEveryProgramWithTheMissingFlag) {
  for (const std::string program : {"prefill_worker", "decode_worker", "router"}) {
    std::vector<std::string> command = {Program("baton_" + program), "--model", model_.path(),
                                        "--tls_cert", Path("cluster/router.pem")};
    if (program == "router") command.push_back("--decode=127.0.0.1:1");
    const Ended ended = Run(command);
    EXPECT_EQ(ended.code, 1) << program;
    EXPECT_THAT(ended.log, HasSubstr("--tls_key is missing"));
  }
  const Ended router = Run({Program("baton_router"), "--model", model_.path(),
                            "--decode=127.0.0.1:1", "--worker_tls_server_name", "name"});
  EXPECT_EQ(router.code, 1);
  EXPECT_THAT(router.log, HasSubstr("--worker_tls_ca is missing"));
  const Ended client =
      Run({Program("baton"), "status", "--tls_client_key", Path("clients/client.key")});
  EXPECT_EQ(client.code, 1);
  EXPECT_THAT(client.log, HasSubstr("--tls_client_cert is missing"));
}

TEST_F(ProgramSecurityTest, BadFilesEndProgramsWithTheirNames) {
  const Ended mismatch =
      Run({Program("baton_decode_worker"), "--model", model_.path(), "--tls_cert",
           Path("cluster/router.pem"), "--tls_key", Path("clients/client.key")});
  EXPECT_EQ(mismatch.code, 1);
  EXPECT_THAT(mismatch.log,
              AllOf(HasSubstr(Path("clients/client.key")), HasSubstr("does not belong")));
  const Ended keys = Run({Program("baton_router"), "--model", model_.path(), "--decode=127.0.0.1:1",
                          "--api_keys", files_.Write("empty", "#\n")});
  EXPECT_EQ(keys.code, 1);
  EXPECT_THAT(keys.log, AllOf(HasSubstr(Path("empty")), HasSubstr("no key")));
}

TEST_F(ProgramSecurityTest, RouterWarnsThatKeysTravelInClearText) {
  auto router = Process::Start({Program("baton_router"), "--model", model_.path(), "--listen",
                                "127.0.0.1:0", "--decode=127.0.0.1:1", "--api_keys", Path("keys")},
                               Path("log"));
  ASSERT_TRUE(router.ok()) << router.status();
  ASSERT_TRUE((*router)->WaitForLine("listening on ", kTimeout).ok());

  EXPECT_THAT(ReadLog(**router), HasSubstr("API keys travel in clear text"));
}

TEST_F(ProgramSecurityTest, ScriptMakesTheCertificatesOfACluster) {
  std::filesystem::remove_all(Path("cluster"));
  std::filesystem::remove_all(Path("clients"));
  const std::string script = "deploy/make_certificates.sh";
  ASSERT_EQ(Run({script, Path("cluster"), "router", "worker"}).code, 0);
  ASSERT_EQ(Run({script, Path("clients"), "client"}).code, 0);
  ASSERT_NO_FATAL_FAILURE(StartCluster());

  EXPECT_EQ(CodeOf(Tls(Path("cluster/ca.pem"), "clients/client"), kKey), absl::StatusCode::kOk);
}

TEST_F(ProgramSecurityTest, CommandLineClientHasCertificateAndKey) {
  ASSERT_NO_FATAL_FAILURE(StartCluster());
  EXPECT_THAT(ReadLog(cluster_->router()), Not(HasSubstr("clear text")));
  std::vector<std::string> status = {Program("baton"),    "status",
                                     "--router",          cluster_->router_address(),
                                     "--tls_ca",          Path("cluster/ca.pem"),
                                     "--tls_client_cert", Path("clients/client.pem"),
                                     "--tls_client_key",  Path("clients/client.key")};
  std::vector<std::string> by_variable = {"env", absl::StrCat("BATON_API_KEY=", kKey)};
  by_variable.insert(by_variable.end(), status.begin(), status.end());
  std::vector<std::string> by_file = status;
  by_file.insert(by_file.end(), {"--api_key_file", files_.Write("key", absl::StrCat(kKey, "\n"))});

  EXPECT_EQ(Run(by_variable).code, 0);
  EXPECT_EQ(Run(by_file).code, 0);
  const Ended keyless = Run(status);
  EXPECT_EQ(keyless.code, 1);
  EXPECT_THAT(keyless.log, AllOf(HasSubstr("UNAUTHENTICATED"), HasSubstr("--api_key_file")));
  const Ended plain = Run({Program("baton"), "status", "--router", cluster_->router_address()});
  EXPECT_EQ(plain.code, 1);
  EXPECT_THAT(plain.log, HasSubstr("--tls_ca"));
}

}  // namespace
}  // namespace baton
