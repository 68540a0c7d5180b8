// The router's side of its session with one worker (proto/worker.proto): connects, says hello,
// keeps the session alive, and comes back when it breaks, until stopped.
#ifndef BATON_COMMON_RPC_SESSION_CLIENT_H_
#define BATON_COMMON_RPC_SESSION_CLIENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/rpc/backoff.h"
#include "common/rpc/channel.h"
#include "proto/worker.grpc.pb.h"

namespace baton {

// One attempt of a router to hold a session; counts up from 1. Whatever names an older one is
// dropped.
enum class SessionNumber : uint64_t {};

// Numbers the sessions of one router incarnation, over all its clients: a worker reached under two
// addresses must see the later session as the higher one. Thread-safe.
class SessionCounter {
 public:
  SessionNumber Next() { return SessionNumber{last_.fetch_add(1) + 1}; }

 private:
  std::atomic<uint64_t> last_ = 0;
};

// Called from gRPC's few threads and from the client's own, one call at a time for one client: hand
// the message over and return, never block. For each session number: OnUp at most once, then
// OnEvent any number of times, then OnDown once (unless the client is stopped meanwhile).
class SessionClientHandler {
 public:
  virtual ~SessionClientHandler() = default;

  // If OnUp or OnEvent returns an error, the session is broken with it.
  virtual absl::Status OnUp(SessionNumber session, const v1::WorkerHello& hello) = 0;
  // Any event but hello and heartbeats.
  virtual absl::Status OnEvent(SessionNumber session, v1::Event event) = 0;
  // The session broke, or could not be had. FAILED_PRECONDITION: the worker refused us.
  virtual void OnDown(SessionNumber session, const absl::Status& status) = 0;
};

struct SessionClientOptions {
  Incarnation router_incarnation{};
  // Borrowed by all clients of that incarnation; null: the client is its only one.
  SessionCounter* numbers = nullptr;
  std::string version;
  Duration heartbeat_interval = std::chrono::seconds(1);
  Duration silence_max = std::chrono::seconds(3);  // Also the longest wait for the worker's hello.
  // Waits between attempts double from the first to the second, each drawn from the upper half by
  // `seed`; a session that came up starts them over.
  Duration backoff_min = std::chrono::milliseconds(100);
  Duration backoff_max = std::chrono::seconds(2);
  Duration refused_backoff = std::chrono::seconds(5);  // After FAILED_PRECONDITION.
  uint64_t seed = 0;
  size_t outbox_commands_max = 8192;
  size_t outbox_bytes_max = 64 << 20;
  ChannelOptions channel;
};

class SessionClient {
 public:
  // Starts to connect at once. `handler` is borrowed until Stop has returned.
  SessionClient(const std::string& address, SessionClientHandler* handler,
                const SessionClientOptions& options);
  // As Stop().
  ~SessionClient();
  SessionClient(const SessionClient&) = delete;
  SessionClient& operator=(const SessionClient&) = delete;

  // Queues a command. False, and nothing is sent, when `session` is not the one that is up, or when
  // the backlog is full: then the session breaks. Never blocks. Any thread, also inside a callback.
  bool Send(SessionNumber session, v1::Command command);

  // Ends the session. No callback runs after it has returned. Idempotent.
  // REQUIRES: not called from a callback.
  void Stop();

  const std::string& address() const { return address_; }

 private:
  class Stream;

  // The attempt in progress if it is `session`, else null.
  Stream* Find(SessionNumber session) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The client's thread: attempts, heartbeats, silence, OnDown.
  void Run();
  // How long to wait for the next one. An error: stopped.
  absl::StatusOr<Duration> RunAttempt(SessionNumber number,
                                      const std::shared_ptr<grpc::Channel>& channel,
                                      Backoff* backoff);
  // At most `wait`: until `connecting`, if there is one, is connected. False: stopped.
  bool WaitForNextAttempt(Duration wait, grpc::Channel* connecting);
  Duration tick() const;

  const std::string address_;
  SessionClientHandler* const handler_;
  const SessionClientOptions options_;
  SessionCounter own_numbers_;  // When the options name none.

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // The attempt in progress; owned by Run. Its lock is taken after ours.
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;

  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_SESSION_CLIENT_H_
