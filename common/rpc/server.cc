#include "common/rpc/server.h"

#include <grpc/grpc.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/rpc/grpc_setup.h"
#include "common/rpc/message_limit.h"
#include "common/rpc/tls_credentials.h"
#include "common/telemetry/log.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:0",
          "Where gRPC is served: host:port. Port 0 takes any free one, which is printed.");
ABSL_FLAG(std::string, tls_cert, "",
          "PEM file: this process's certificate, then what leads from it to the authority. With "
          "--tls_key; neither: the gRPC port is plaintext. Files are read again when they change.");
ABSL_FLAG(std::string, tls_key, "", "PEM file: the private key of --tls_cert, without a password.");
ABSL_FLAG(std::string, tls_client_ca, "",
          "PEM file of authorities: clients must show a certificate that one of them has signed "
          "(mutual TLS). Needs --tls_cert.");
ABSL_FLAG(
    baton::ByteSize, grpc_memory, baton::ByteSize{uint64_t{4} << 30},
    "Most memory for messages that gRPC has received and that are in use. Beyond it gRPC ends "
    "calls, whichever they are, with RESOURCE_EXHAUSTED.");

namespace baton {
namespace {

// How long cancelled calls may take to end before those that are there then are cancelled.
constexpr Duration kCancelInterval = std::chrono::milliseconds(100);

int Milliseconds(Duration duration) {
  return static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(duration).count());
}

// Why `address` cannot be bound: gRPC tells it to its log only.
std::string BindFailure(const HostPort& address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) return gai_strerror(error);
  std::string reason = "the address is in use";
  const int fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
  if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0) reason = std::strerror(errno);
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return reason;
}

void Configure(const RpcServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(options.receive_message_bytes_max);
  builder->SetMaxSendMessageSize(options.send_message_bytes_max);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.concurrent_streams_max);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_interval));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              Milliseconds(options.keepalive_timeout));
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                              Milliseconds(options.handshake_timeout));
  if (options.connection_age_max > Duration::zero()) {
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                                Milliseconds(options.connection_age_max));
  }
  // Clients may ping as often as we do; faster is abuse.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  // The callback API runs on gRPC's own threads, half as many as cores; these bounds are for the
  // synchronous reflection service.
  builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
  builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 1);
  grpc::ResourceQuota quota("baton");
  quota.SetMaxThreads(options.sync_threads_max);
  quota.Resize(options.memory_bytes_max);
  builder->SetResourceQuota(quota);
}

std::shared_ptr<grpc::ServerCredentials> Credentials(const RpcServerOptions& options) {
  if (options.tls == nullptr) return grpc::InsecureServerCredentials();
  ShowHandshakeFailures();
  return MakeServerCredentials(options.tls);
}

const char* Security(const RpcServerOptions& options) {
  if (options.tls == nullptr) return "plaintext";
  return options.tls->checks_peers() ? "mutual TLS" : "TLS";
}

}  // namespace

absl::StatusOr<RpcServerOptions> RpcServerOptionsFromFlags() {
  RpcServerOptions options;
  options.listen = absl::GetFlag(FLAGS_listen);
  options.receive_message_bytes_max = MessageBytesMaxFromFlags();
  options.send_message_bytes_max = MessageBytesMaxFromFlags();
  options.memory_bytes_max = absl::GetFlag(FLAGS_grpc_memory).bytes;
  if (options.memory_bytes_max < static_cast<uint64_t>(options.receive_message_bytes_max)) {
    return absl::InvalidArgumentError("--grpc_memory must be at least --message_limit");
  }
  BATON_ASSIGN_OR_RETURN(
      options.tls,
      LoadServerTls({.certificate = {"tls_cert", absl::GetFlag(FLAGS_tls_cert)},
                     .key = {"tls_key", absl::GetFlag(FLAGS_tls_key)},
                     .client_authorities = {"tls_client_ca", absl::GetFlag(FLAGS_tls_client_ca)}}));
  return options;
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const RpcServerOptions& options, const std::vector<grpc::Service*>& services) {
  BATON_ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options.listen));
  SetUpGrpc();
  grpc::ServerBuilder builder;
  Configure(options, &builder);
  int port = 0;
  const std::shared_ptr<grpc::ServerCredentials> credentials = Credentials(options);
  builder.AddListeningPort(options.listen, credentials, &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.listen, ": ", BindFailure(address)));
  }
  BATON_CHECK(server->GetHealthCheckService() != nullptr);
  server->GetHealthCheckService()->SetServingStatus(false);
  address.port = static_cast<uint16_t>(port);
  LogInfo("listening", {{"address", FormatHostPort(address)}, {"security", Security(options)}});
  return std::unique_ptr<RpcServer>(
      new RpcServer(credentials, std::move(server), FormatHostPort(address), port));
}

RpcServer::RpcServer(std::shared_ptr<grpc::ServerCredentials> credentials,
                     std::unique_ptr<grpc::Server> server, std::string address, int port)
    : credentials_(std::move(credentials)),
      server_(std::move(server)),
      address_(std::move(address)),
      port_(port) {}

RpcServer::~RpcServer() { Shutdown(Duration::zero()); }

void RpcServer::SetServing(bool serving, const std::string& service) {
  absl::MutexLock lock(&mutex_);
  if (!draining_) server_->GetHealthCheckService()->SetServingStatus(service, serving);
}

void RpcServer::BeginDrain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  server_->GetHealthCheckService()->SetServingStatus(false);
}

bool RpcServer::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

void RpcServer::StopListening() {
  BeginDrain();
  if (closing_.joinable() || closed_.HasBeenNotified()) return;
  closing_ = std::thread([this] {
    server_->Shutdown();
    server_->Wait();
    closed_.Notify();
  });
}

void RpcServer::Shutdown(Duration grace) {
  StopListening();
  if (!closing_.joinable()) return;
  // Again and again: a call may come in before the other thread has closed the door.
  while (!closed_.WaitForNotificationWithTimeout(absl::FromChrono(grace))) {
    grpc_server_cancel_all_calls(server_->c_server());
    grace = kCancelInterval;
  }
  closing_.join();
}

}  // namespace baton
