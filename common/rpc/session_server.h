// The worker's side of its sessions with routers (proto/worker.proto): the gRPC streams, who may
// say what when, silence and backlog. What commands mean is the handler's business.
//
// The worker owns it beside the RpcServer that serves it. End in this order:
// SessionServer::Shutdown, RpcServer::Shutdown, destroy the server, then this, then the handler.
#ifndef BATON_COMMON_RPC_SESSION_SERVER_H_
#define BATON_COMMON_RPC_SESSION_SERVER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/telemetry/metrics.h"
#include "proto/worker.grpc.pb.h"

namespace baton {

// One stream of one router; never used twice by a SessionServer. 0 is none.
enum class SessionId : uint64_t {};

// Called from gRPC's few threads and from the SessionServer's own, never two calls at a time for
// one session: hand the message over and return, never block. All methods of SessionServer but
// Shutdown may be called from inside.
class SessionHandler {
 public:
  virtual ~SessionHandler() = default;

  // A router asks for a session. The answer goes out before any event sent meanwhile for `session`.
  // A refusal ends the stream with its status, and nothing more is heard of that session.
  // FAILED_PRECONDITION: the router comes back only slowly.
  virtual absl::StatusOr<v1::WorkerHello> OnSessionOpened(SessionId session,
                                                          const v1::RouterHello& hello) = 0;
  // Any command but hello and ping.
  virtual void OnCommand(SessionId session, v1::Command command) = 0;
  // Once for every accepted session; nothing comes after it. It precedes OnSessionOpened of the
  // session that replaced this one.
  virtual void OnSessionClosed(SessionId session) = 0;
};

struct SessionServerOptions {
  Duration heartbeat_interval = std::chrono::seconds(1);
  Duration silence_max = std::chrono::seconds(3);
  // How long a closing stream may take to write its backlog and status before it is cut.
  Duration close_grace = std::chrono::seconds(1);
  size_t outbox_events_max = 8192;
  size_t outbox_bytes_max = 64 << 20;
  size_t sessions_max = 256;
  MetricsRegistry* metrics = nullptr;  // Borrowed; may be null.
  // Whether the worker behind the sessions works; null: it does. While it does not, there are no
  // sessions: those open are broken with this status and new ones refused. Called often, from
  // gRPC's threads and the server's own.
  std::function<absl::Status(Instant now)> check;
};

class SessionServer final : public v1::Worker::CallbackService {
 public:
  // `handler` is borrowed.
  SessionServer(SessionHandler* handler, const SessionServerOptions& options);
  // REQUIRES: the RpcServer that served it is gone, or never was.
  ~SessionServer() override;

  // Queues an event; drops it when the session has ended. A backlog over the limits breaks the
  // session with RESOURCE_EXHAUSTED. Consecutive Tokens that are not written yet become one
  // message. Never blocks. Any thread.
  void Send(SessionId session, v1::Event event);
  // Ends the session with `status` after what was sent before; without effect on one that has
  // ended. OnSessionClosed follows, but not inside this call. Any thread.
  void Close(SessionId session, const absl::Status& status);

  // Refuses new sessions with UNAVAILABLE, closes all with `status`, and returns when every
  // OnSessionClosed has returned. Idempotent.
  void Shutdown(const absl::Status& status);

  // Sessions that were accepted and have not ended.
  size_t session_count() const { return open_count_; }

  // gRPC's entry.
  grpc::ServerBidiReactor<v1::Command, v1::Event>* Session(
      grpc::CallbackServerContext* context) override;

 private:
  class Stream;
  struct Metrics;
  // Why a session ended; a label of baton_sessions_ended_total.
  enum class EndReason {
    kPeer,
    kSilence,
    kOverflow,
    kRetired,
    kRefused,
    kProtocol,
    kStalled,
    kClosed
  };
  // The live session of one router.
  struct Router {
    uint64_t session_number;
    std::string dialed;  // Our address as that router knows it.
    std::shared_ptr<Stream> stream;
  };

  std::shared_ptr<Stream> Find(SessionId session) const;
  std::vector<std::shared_ptr<Stream>> AllStreams() const;
  // Makes `stream` the session of its router and returns the one it replaces, if any.
  // FAILED_PRECONDITION while a session of that router under another of our addresses is alive: the
  // two would retire each other for ever. ABORTED when a session of this number or a higher one is
  // there.
  absl::StatusOr<std::shared_ptr<Stream>> Register(const v1::RouterHello& hello,
                                                   std::shared_ptr<Stream> stream);
  // The stream has ended: the timer thread is to tell the handler.
  void QueueClosed(std::shared_ptr<Stream> stream);
  // The handler has been told, or needs not be.
  void ClosedDelivered(const Stream* stream);
  // gRPC has forgotten the stream.
  void Forget(SessionId session);

  absl::Status CheckWorker(Instant now) const;
  // The timer thread: heartbeats, silence, the worker's check, and OnSessionClosed.
  void Run();
  void TickAll(const absl::Status& worker, Instant now);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllDelivered() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllForgotten() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  SessionHandler* const handler_;
  const SessionServerOptions options_;
  const std::unique_ptr<MetricsRegistry> own_metrics_;  // When the options name none.
  const std::unique_ptr<Metrics> metrics_;

  // Taken after a stream's delivery lock and never while a stream's state lock is held.
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t last_session_ ABSL_GUARDED_BY(mutex_) = 0;
  // shared_ptr: gRPC, a sender and the timer thread may each hold a stream last.
  absl::flat_hash_map<SessionId, std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Router> routers_ ABSL_GUARDED_BY(mutex_);  // By incarnation.
  std::vector<std::shared_ptr<Stream>> closed_ ABSL_GUARDED_BY(mutex_);    // See QueueClosed.
  size_t undelivered_count_ ABSL_GUARDED_BY(mutex_) = 0;  // Streams without ClosedDelivered.

  std::atomic<size_t> open_count_ = 0;
  std::thread timer_;  // Last: it uses all of the above.
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_SESSION_SERVER_H_
