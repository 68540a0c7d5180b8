// A whole cluster of real processes on loopback, and a client for it.
#ifndef BATON_TESTS_SUPPORT_CLUSTER_H_
#define BATON_TESTS_SUPPORT_CLUSTER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/rpc/tls_files.h"
#include "proto/inference.grpc.pb.h"
#include "tests/support/process.h"

namespace baton {

struct ClusterOptions {
  std::string model;
  int prefill = 1;
  int decode = 1;
  std::vector<std::string> worker_flags;  // For every worker.
  std::vector<std::string> decode_flags;  // For decode workers.
  std::vector<std::string> router_flags;
  // Where a worker is to be started otherwise: changes its command. `role` is "prefill" or
  // "decode".
  std::function<void(const std::string& role, int index, std::vector<std::string>* command)> place =
      nullptr;
  std::shared_ptr<TlsFiles> tls = nullptr;  // Of the client here; null: plaintext.
  std::string api_key = "";                 // Of the client here.
  bool wait_for_router = false;  // Whether its calls wait for a router that is not there.
};

// What one Generate call gave.
struct Answer {
  absl::Status status;
  std::vector<TokenId> tokens;
  std::string text;
  v1::Started started;
  v1::Finished finished;
  bool has_finished = false;
  std::optional<uint32_t> retry_after_ms;  // The hint of a refusal.
};

// The folder of the binaries under test: $BATON_BIN_DIR.
std::string BinaryFolder();

// A fresh folder. It goes with its owner, unless a test failed: then its logs are worth reading.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  void Keep() { keep_ = true; }

 private:
  std::string path_;
  bool keep_ = false;
};

class Cluster {
 public:
  // Starts the processes and waits until every worker is ready at the router.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(const ClusterOptions& options);
  // Kills what still runs.
  ~Cluster();

  // Any thread. `on_delta` runs for each delta; returning false cancels the call.
  Answer Generate(const v1::GenerateRequest& request, Duration timeout = std::chrono::seconds(60),
                  const std::function<bool(const v1::Delta&)>& on_delta = nullptr);
  absl::StatusOr<v1::GetClusterResponse> Status();

  // Asks for the status until `reached` holds; false after `timeout`.
  bool WaitUntil(const std::function<bool(const v1::GetClusterResponse&)>& reached,
                 Duration timeout = std::chrono::seconds(30));

  // Every block of every worker is free or cached, and nothing runs or waits.
  static bool AtRest(const v1::GetClusterResponse& status);
  static int ReadyCount(const v1::GetClusterResponse& status);

  Process& prefill(int i) { return *prefill_[static_cast<size_t>(i)].process; }
  Process& decode(int i) { return *decode_[static_cast<size_t>(i)].process; }
  Process& router() { return *router_; }
  v1::Inference::Stub& stub() { return *stub_; }
  const std::string& prefill_address(int i) const {
    return prefill_[static_cast<size_t>(i)].address;
  }
  const std::string& decode_address(int i) const { return decode_[static_cast<size_t>(i)].address; }
  const std::string& router_address() const { return router_address_; }
  // For ReadMetrics.
  const std::string& router_metrics_address() const { return router_metrics_address_; }

  // Where the logs are, and that they are to stay there.
  const std::string& folder() const { return folder_.path(); }
  void KeepLogs() { folder_.Keep(); }

  // Starts a worker again at its old address, after it died.
  absl::Status RestartPrefill(int i);
  absl::Status RestartDecode(int i);
  // Calls from other threads may go on meanwhile, and fail.
  absl::Status RestartRouter() { return StartRouter(router_address_); }

 private:
  struct WorkerProcess {
    std::string address;
    std::unique_ptr<Process> process;
  };

  explicit Cluster(const ClusterOptions& options);
  // Before each call of the client here.
  void Prepare(grpc::ClientContext* context, Duration timeout) const;
  absl::Status StartWorker(const std::string& role, int index, const std::string& listen);
  absl::Status RestartWorker(const std::string& role, int index, const std::string& address);
  absl::Status StartRouter(const std::string& listen);

  const ClusterOptions options_;
  TemporaryFolder folder_;  // Logs. Outlives the processes.
  std::vector<WorkerProcess> prefill_;
  std::vector<WorkerProcess> decode_;
  std::unique_ptr<Process> router_;
  std::string router_address_;
  std::string router_metrics_address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  int starts_ = 0;
};

}  // namespace baton

#endif  // BATON_TESTS_SUPPORT_CLUSTER_H_
