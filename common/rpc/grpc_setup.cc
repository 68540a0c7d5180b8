#include "common/rpc/grpc_setup.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <string>

#include "absl/base/call_once.h"
#include "common/base/clock.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

constexpr Duration kHandshakeLineInterval = std::chrono::seconds(5);

std::atomic<bool> show_handshake_failures = false;

// Strangers may fail as often as they like, and shall not fill the log.
bool MayShowHandshakeFailure() {
  static std::atomic<Instant> next = Instant::min();
  if (!show_handshake_failures.load(std::memory_order_relaxed)) return false;
  const Instant now = Now();
  Instant seen = next.load();
  return now >= seen && next.compare_exchange_strong(seen, now + kHandshakeLineInterval);
}

// Whatever goes wrong inside gRPC also comes out as a status, which is logged by whoever handles
// it. But not these two: what ends the process, and a client that a TLS server sends away.
void LogFromGrpc(gpr_log_func_args* line) {
  const std::string message = line->message;
  if (message.starts_with("assertion failed")) {
    LogError("grpc", {{"message", message}, {"file", line->file}, {"line", line->line}});
    return;
  }
  if (message.starts_with("Handshake failed") && MayShowHandshakeFailure()) {
    LogWarning("TLS handshake failed", {{"reason", message}});
    return;
  }
  LogDebug("grpc", {{"message", message}, {"file", line->file}, {"line", line->line}});
}

}  // namespace

void SetUpGrpc() {
  static absl::once_flag once;
  absl::call_once(once, [] {
    gpr_set_log_function(&LogFromGrpc);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

void ShowHandshakeFailures() { show_handshake_failures.store(true, std::memory_order_relaxed); }

}  // namespace baton
