#include "tests/support/cluster.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/rpc/status_codec.h"
#include "common/rpc/tls_credentials.h"

namespace baton {
namespace {

constexpr Duration kStartTimeout = std::chrono::seconds(60);
constexpr Duration kRestartTimeout = std::chrono::seconds(10);
constexpr int kReconnectMs = 200;
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

// A pause between two questions to another process: there is nothing to be woken by.
void Pause() { absl::Notification().WaitForNotificationWithTimeout(kPollInterval); }

// An address that no outgoing connection is given: below the ports that Linux hands out, so that it
// is still free when a worker that died is started again.
std::string UnusedAddress() {
  static std::mt19937 random(static_cast<uint32_t>(getpid()));
  while (true) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const auto port = static_cast<uint16_t>(10000 + random() % 20000);
    address.sin_port = htons(port);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int taken = bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    close(fd);
    if (taken == 0) return absl::StrCat("127.0.0.1:", port);
  }
}

// Somebody else may take an address before it is used.
absl::Status AtUnusedAddress(const std::function<absl::Status(const std::string& address)>& start) {
  absl::Status status;
  for (int attempt = 0; attempt < 3; ++attempt) {
    status = start(UnusedAddress());
    if (status.ok()) break;
  }
  return status;
}

}  // namespace

std::string BinaryFolder() {
  const char* folder = std::getenv("BATON_BIN_DIR");
  BATON_CHECK_MSG(folder != nullptr, "set BATON_BIN_DIR to the folder of the binaries");
  return folder;
}

TemporaryFolder::TemporaryFolder()
    : path_((std::filesystem::temp_directory_path() / "baton_test_XXXXXX").string()) {
  BATON_CHECK(mkdtemp(path_.data()) != nullptr);
}

TemporaryFolder::~TemporaryFolder() {
  if (keep_ || testing::UnitTest::GetInstance()->Failed()) return;
  std::error_code ignored;  // A folder that is left behind harms nobody.
  std::filesystem::remove_all(path_, ignored);
}

Cluster::Cluster(const ClusterOptions& options) : options_(options) {}
Cluster::~Cluster() = default;

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(const ClusterOptions& options) {
  auto cluster = std::unique_ptr<Cluster>(new Cluster(options));
  cluster->prefill_.resize(static_cast<size_t>(options.prefill));
  cluster->decode_.resize(static_cast<size_t>(options.decode));
  for (int i = 0; i < options.prefill; ++i) {
    BATON_RETURN_IF_ERROR(AtUnusedAddress(
        [&](const std::string& address) { return cluster->StartWorker("prefill", i, address); }));
  }
  for (int i = 0; i < options.decode; ++i) {
    BATON_RETURN_IF_ERROR(AtUnusedAddress(
        [&](const std::string& address) { return cluster->StartWorker("decode", i, address); }));
  }
  BATON_RETURN_IF_ERROR(
      AtUnusedAddress([&](const std::string& address) { return cluster->StartRouter(address); }));
  const int workers = options.prefill + options.decode;
  if (!cluster->WaitUntil(
          [workers](const v1::GetClusterResponse& status) { return ReadyCount(status) == workers; },
          kStartTimeout)) {
    return absl::DeadlineExceededError(
        absl::StrCat("the workers did not become ready: ",
                     cluster->Status().value_or(v1::GetClusterResponse()).ShortDebugString(),
                     "\nrouter log:\n", cluster->router_->LogTail()));
  }
  return cluster;
}

absl::Status Cluster::StartWorker(const std::string& role, int index, const std::string& listen) {
  WorkerProcess& worker = (role == "decode" ? decode_ : prefill_)[static_cast<size_t>(index)];
  std::vector<std::string> command = {absl::StrCat(BinaryFolder(), "/baton_", role, "_worker"),
                                      "--model",
                                      options_.model,
                                      "--listen",
                                      listen,
                                      "--kv_memory",
                                      "16MiB",
                                      "--threads",
                                      "1"};
  command.insert(command.end(), options_.worker_flags.begin(), options_.worker_flags.end());
  if (role == "decode") {
    command.insert(command.end(), options_.decode_flags.begin(), options_.decode_flags.end());
  }
  if (options_.place != nullptr) options_.place(role, index, &command);
  BATON_ASSIGN_OR_RETURN(
      worker.process,
      Process::Start(command, absl::StrCat(folder_.path(), "/", role, "-", starts_++, ".log")));
  BATON_ASSIGN_OR_RETURN(worker.address,
                         worker.process->WaitForLine("listening on ", kStartTimeout));
  return absl::OkStatus();
}

absl::Status Cluster::StartRouter(const std::string& listen) {
  const auto addresses = [](const std::vector<WorkerProcess>& workers) {
    return absl::StrJoin(workers, ",", [](std::string* out, const WorkerProcess& worker) {
      absl::StrAppend(out, worker.address);
    });
  };
  std::vector<std::string> command = {absl::StrCat(BinaryFolder(), "/baton_router"),
                                      "--model",
                                      options_.model,
                                      "--listen",
                                      listen,
                                      "--metrics",
                                      "127.0.0.1:0",
                                      absl::StrCat("--decode=", addresses(decode_))};
  if (!prefill_.empty()) command.push_back(absl::StrCat("--prefill=", addresses(prefill_)));
  command.insert(command.end(), options_.router_flags.begin(), options_.router_flags.end());
  BATON_ASSIGN_OR_RETURN(router_, Process::Start(command, folder_.path() + "/router.log"));
  BATON_ASSIGN_OR_RETURN(router_address_, router_->WaitForLine("listening on ", kStartTimeout));
  BATON_ASSIGN_OR_RETURN(router_metrics_address_,
                         router_->WaitForLine("metrics on ", kStartTimeout));
  if (stub_ != nullptr) return absl::OkStatus();  // Others may be using it; it connects again.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMs);
  stub_ = v1::Inference::NewStub(grpc::CreateCustomChannel(
      router_address_, MakeChannelCredentials(options_.tls.get()), arguments));
  return absl::OkStatus();
}

absl::Status Cluster::RestartPrefill(int i) {
  return RestartWorker("prefill", i, std::string(prefill_address(i)));
}

absl::Status Cluster::RestartDecode(int i) {
  return RestartWorker("decode", i, std::string(decode_address(i)));
}

absl::Status Cluster::RestartWorker(const std::string& role, int index,
                                    const std::string& address) {
  absl::Status started;
  for (const Instant deadline = Now() + kRestartTimeout; Now() < deadline; Pause()) {
    started = StartWorker(role, index, address);
    if (!absl::IsUnavailable(started)) break;  // Its port may be taken for a moment.
  }
  return started;
}

void Cluster::Prepare(grpc::ClientContext* context, Duration timeout) const {
  context->set_deadline(std::chrono::system_clock::now() + timeout);
  context->set_wait_for_ready(options_.wait_for_router);
  if (!options_.api_key.empty()) {
    context->AddMetadata("authorization", "Bearer " + options_.api_key);
  }
}

Answer Cluster::Generate(const v1::GenerateRequest& request, Duration timeout,
                         const std::function<bool(const v1::Delta&)>& on_delta) {
  Answer answer;
  grpc::ClientContext context;
  Prepare(&context, timeout);
  const std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader =
      stub_->Generate(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    if (response.has_started()) {
      answer.started = response.started();
    } else if (response.has_delta()) {
      answer.text += response.delta().text();
      for (const v1::Token& token : response.delta().tokens()) answer.tokens.push_back(token.id());
      if (on_delta && !on_delta(response.delta())) context.TryCancel();
    } else if (response.has_finished()) {
      answer.finished = response.finished();
      answer.has_finished = true;
    }
  }
  answer.status = FromGrpcStatus(reader->Finish());
  const auto hint = context.GetServerTrailingMetadata().find("retry-after-ms");
  if (hint != context.GetServerTrailingMetadata().end()) {
    answer.retry_after_ms = std::stoul(std::string(hint->second.data(), hint->second.size()));
  }
  return answer;
}

absl::StatusOr<v1::GetClusterResponse> Cluster::Status() {
  grpc::ClientContext context;
  Prepare(&context, std::chrono::seconds(5));
  v1::GetClusterResponse response;
  const absl::Status status = FromGrpcStatus(stub_->GetCluster(&context, {}, &response));
  if (!status.ok()) return status;
  return response;
}

bool Cluster::WaitUntil(const std::function<bool(const v1::GetClusterResponse&)>& reached,
                        Duration timeout) {
  for (const Instant deadline = Now() + timeout; Now() < deadline; Pause()) {
    const absl::StatusOr<v1::GetClusterResponse> status = Status();
    if (status.ok() && reached(*status)) return true;
  }
  return false;
}

bool Cluster::AtRest(const v1::GetClusterResponse& status) {
  if (status.requests_queued() + status.requests_running() > 0) return false;
  for (const v1::WorkerStatus& worker : status.workers()) {
    if (worker.state() != "ready") return false;
    const v1::WorkerLoad& load = worker.load();
    if (load.blocks_free() + load.blocks_cached() != load.blocks_total()) return false;
    if (load.sequences_running() + load.sequences_waiting() > 0) return false;
  }
  return true;
}

int Cluster::ReadyCount(const v1::GetClusterResponse& status) {
  int count = 0;
  for (const v1::WorkerStatus& worker : status.workers())
    count += worker.state() == "ready" ? 1 : 0;
  return count;
}

}  // namespace baton
