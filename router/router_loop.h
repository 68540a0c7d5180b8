// The router's thread: owns the core and the sessions to the workers, takes what happens from one
// bounded queue, and performs the core's actions.
#ifndef BATON_ROUTER_ROUTER_LOOP_H_
#define BATON_ROUTER_ROUTER_LOOP_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/base/bounded_queue.h"
#include "common/base/clock.h"
#include "common/rpc/session_client.h"
#include "router/client_stream.h"
#include "router/ended_calls.h"
#include "router/router_core.h"
#include "router/router_metrics.h"

namespace baton {

struct RouterLoopOptions {
  CoreOptions core;
  SessionClientOptions session;
  Duration tick = std::chrono::milliseconds(20);
  uint32_t streams_max = 8192;  // Calls inside at once; more are refused.
  // How long a client may take to read the rest of its call when the request has ended.
  Duration client_read_max = std::chrono::seconds(30);
  uint32_t workers_max = 1024;
};

class RouterLoop {
 public:
  // Starts the thread. `metrics` outlives this.
  RouterLoop(RouterLoopOptions options, RouterMetrics* metrics);
  // As Stop(0).
  ~RouterLoop();
  RouterLoop(const RouterLoop&) = delete;
  RouterLoop& operator=(const RouterLoop&) = delete;

  // All of these may be called from any thread and never block.

  RequestId NewRequestId() { return RequestId{next_request_.fetch_add(1)}; }
  // On success `stream` gets exactly one End, is inside until CallDone, and may be cut after its
  // End; on failure it is never touched. kResourceExhausted: too many calls inside. kUnavailable:
  // the router has stopped.
  absl::Status Submit(NewRequest request, ClientStream* stream);
  // The call is over, and the stream may go. REQUIRES: its End was called.
  void CallDone(ClientStream* stream);
  void Cancel(RequestId id);
  // Runs `query` on the router's thread, before Stop returns. On failure it will not run.
  // kResourceExhausted: too many wait. kUnavailable: the router has stopped.
  absl::Status Query(std::function<void(RouterCore&)> query);
  // The addresses that should have a session as workers of this role. One that is no longer named
  // keeps its session until that breaks: a name service forgets a worker that drains.
  void SetWorkers(v1::Role role, std::vector<std::string> addresses);
  // Whether any decode worker is ready, as of a moment ago.
  bool ready() const { return ready_.load(); }
  // Refuses new requests with kUnavailable from now on.
  void Drain();

  // Drains, waits up to `grace` for the requests inside, ends the rest with kUnavailable, and stops
  // the thread and the sessions. Idempotent; one thread.
  void Stop(Duration grace);

 private:
  class WorkerLink;

  struct Arrived {
    NewRequest request;
    ClientStream* stream = nullptr;
  };
  struct Cancelled {
    RequestId id{};
  };
  struct WorkersNamed {
    v1::Role role = v1::ROLE_UNSPECIFIED;
    std::vector<std::string> addresses;
  };
  struct WorkerUp {
    WorkerId worker{};
    SessionNumber session{};
    v1::WorkerHello hello;
  };
  struct WorkerSaid {
    WorkerId worker{};
    v1::Event event;
  };
  struct WorkerDown {
    WorkerId worker{};
    absl::Status status;
  };
  struct Asked {
    std::function<void(RouterCore&)> query;
  };
  struct DrainAsked {};
  using Happening = std::variant<Arrived, Cancelled, WorkersNamed, WorkerUp, WorkerSaid, WorkerDown,
                                 Asked, DrainAsked>;

  static constexpr uint32_t kQueriesMax = 64;  // Waiting at once.

  void Run();
  // What follows runs on the router's thread.
  void Apply(Happening happening, Instant now);
  void ApplyWorkers(const WorkersNamed& named);
  void ApplyDown(WorkerId worker, const absl::Status& status, Instant now);
  void Perform();
  void PerformSend(SendCommand send);
  void PerformAccept(const Accept& accept);
  void PerformEmit(Emit emit);
  void PerformFinish(const Finish& finish);

  // The queue's rooms, each a bound on what fills the queue up to it. Beyond them only a session's
  // end may go: once no new session finds room, there are no more ends than links.
  size_t worker_event_room() const {
    // A worker speaks in bursts however few the streams are.
    return std::max<size_t>(size_t{2} * options_.streams_max, 256);
  }
  size_t cancel_room() const { return worker_event_room() + options_.streams_max; }
  // Arrivals and queries are bounded by their number.
  size_t counted_room() const { return cancel_room() + options_.streams_max + kQueriesMax; }
  size_t failed_attempt_room() const { return counted_room() + options_.workers_max; }
  size_t session_room() const { return failed_attempt_room() + options_.workers_max; }
  size_t capacity() const { return session_room() + size_t{2} * options_.workers_max; }

  const RouterLoopOptions options_;
  RouterMetrics* const metrics_;
  BoundedQueue<Happening> queue_;
  std::atomic<uint64_t> next_request_{1};
  std::atomic<uint32_t> stream_count_{0};  // Submitted, and not done.
  std::atomic<uint32_t> query_count_{0};
  std::atomic<bool> ready_{false};

  EndedCalls ended_calls_;
  SessionCounter session_numbers_;  // Of all links.

  // The router's thread's own.
  RouterCore core_;
  std::map<RequestId, ClientStream*> streams_;
  std::map<WorkerId, std::unique_ptr<WorkerLink>> links_;
  bool draining_ = false;

  absl::Mutex mutex_;
  bool drained_ ABSL_GUARDED_BY(mutex_) = false;  // Draining, and nothing is inside.
  bool stopped_ = false;                          // Of the thread that stops.
  std::thread thread_;
};

}  // namespace baton

#endif  // BATON_ROUTER_ROUTER_LOOP_H_
