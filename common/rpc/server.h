// A process's gRPC server: services over the callback API, grpc.health.v1 and reflection.
//
// Life: Start (health NOT_SERVING) -> SetServing(true) -> BeginDrain (NOT_SERVING for good) ->
// perhaps StopListening -> Shutdown. Services outlive the server; the owner ends its streams
// between BeginDrain and Shutdown. Thread-safe, except that StopListening, Shutdown and destruction
// come from one thread.
#ifndef BATON_COMMON_RPC_SERVER_H_
#define BATON_COMMON_RPC_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/base/clock.h"
#include "common/rpc/tls_files.h"

namespace grpc {
class Server;
class ServerCredentials;
class Service;
}  // namespace grpc

namespace baton {

struct RpcServerOptions {
  std::string listen = "127.0.0.1:0";  // host:port; port 0 takes any free one.
  int receive_message_bytes_max = 64 << 20;
  int send_message_bytes_max = 64 << 20;
  int concurrent_streams_max = 4096;  // Of one connection.
  int sync_threads_max = 8;           // For reflection, the only synchronous service.
  // Of what was received and is in use. Beyond it gRPC ends calls with RESOURCE_EXHAUSTED,
  // whichever they are: the last resort before the process ends for lack of memory.
  uint64_t memory_bytes_max = uint64_t{4} << 30;
  Duration keepalive_interval = std::chrono::seconds(10);
  // Idle clients that have no thread of their own for it look at their connections every 5 s, so
  // that may be how long they take to answer a ping.
  Duration keepalive_timeout = std::chrono::seconds(20);
  // After so long a client is told to connect anew for its next calls, so that clients come to
  // servers that were added; those that run go on. Zero: never.
  Duration connection_age_max = Duration::zero();
  // How long a new connection may take to say who it is.
  Duration handshake_timeout = std::chrono::seconds(20);
  // Null: plaintext. With authorities, clients must show a certificate of theirs.
  std::shared_ptr<TlsFiles> tls;
};

// By the flags --listen, --message_limit and --tls_*. kInvalidArgument: which of them is wrong, or
// which file.
absl::StatusOr<RpcServerOptions> RpcServerOptionsFromFlags();

class RpcServer {
 public:
  // `services` are borrowed until the server is destroyed. INVALID_ARGUMENT for a malformed
  // address, UNAVAILABLE when it cannot be bound: a port is never shared with another server.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const RpcServerOptions& options, const std::vector<grpc::Service*>& services);
  // As Shutdown(0).
  ~RpcServer();
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;

  // host:port with the port that was bound.
  const std::string& address() const { return address_; }
  int port() const { return port_; }

  // What health answers, of the server or of one service. Without effect once draining.
  void SetServing(bool serving, const std::string& service = "");
  // Health says NOT_SERVING from now on. Calls go on, and new ones are still accepted: refusing
  // them is the services' business.
  void BeginDrain();
  bool draining() const;

  // Also tells clients to take their next calls elsewhere (GOAWAY, RFC 9113, 6.8), and accepts no
  // more connections. A call that comes before its client has heard that is cancelled. Idempotent.
  void StopListening();

  // Accepts no more calls, waits up to `grace` for those running, cancels the rest, and returns
  // when all have ended. Idempotent.
  void Shutdown(Duration grace);

 private:
  RpcServer(std::shared_ptr<grpc::ServerCredentials> credentials,
            std::unique_ptr<grpc::Server> server, std::string address, int port);

  const std::shared_ptr<grpc::ServerCredentials> credentials_;  // shared_ptr: as gRPC has it.
  const std::unique_ptr<grpc::Server> server_;
  const std::string address_;
  const int port_;
  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread closing_;  // Since StopListening: waits until all calls have ended.
  absl::Notification closed_;
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_SERVER_H_
