#include "router/router_loop.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/check.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

constexpr Duration kMetricsInterval = std::chrono::milliseconds(200);

template <typename... Handlers>
struct Overloaded : Handlers... {
  using Handlers::operator()...;
};
template <typename... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;

}  // namespace

// One worker's session, for as long as its address is named.
class RouterLoop::WorkerLink final : public SessionClientHandler {
 public:
  WorkerLink(RouterLoop* loop, WorkerId worker, const std::string& address)
      : loop_(loop), worker_(worker), address_(address) {
    SessionClientOptions options = loop->options_.session;
    options.numbers = &loop->session_numbers_;
    client_ = std::make_unique<SessionClient>(address, this, options);
  }
  ~WorkerLink() override { client_->Stop(); }

  absl::Status OnUp(SessionNumber number, const v1::WorkerHello& hello) override {
    if (loop_->queue_.TryPush(WorkerUp{worker_, number, hello}, loop_->session_room())) {
      announced_ = number;
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError("the router cannot keep up with sessions");
  }
  absl::Status OnEvent(SessionNumber, v1::Event event) override {
    if (loop_->queue_.TryPush(WorkerSaid{worker_, std::move(event)}, loop_->worker_event_room())) {
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError("the router cannot keep up with events");
  }
  void OnDown(SessionNumber number, const absl::Status& status) override {
    // The end of a session that began must not be lost. Of failed attempts there will be others.
    const size_t room = number == announced_ ? SIZE_MAX : loop_->failed_attempt_room();
    (void)loop_->queue_.TryPush(WorkerDown{worker_, status}, room);
  }

  bool Send(v1::Command command) { return client_->Send(session, std::move(command)); }
  const std::string& address() const { return address_; }

  // The router's thread's own.
  SessionNumber session{};  // The one that is up; zero if none.
  bool named = true;

 private:
  RouterLoop* const loop_;
  const WorkerId worker_;
  const std::string address_;
  SessionNumber announced_{};  // Of the client's callbacks: the last that the router's thread saw.
  std::unique_ptr<SessionClient> client_;
};

RouterLoop::RouterLoop(RouterLoopOptions options, RouterMetrics* metrics)
    : options_(std::move(options)),
      metrics_(metrics),
      queue_(capacity()),
      core_(options_.core),
      thread_([this] { Run(); }) {}

RouterLoop::~RouterLoop() { Stop(Duration::zero()); }

absl::Status RouterLoop::Submit(NewRequest request, ClientStream* stream) {
  if (stream_count_.fetch_add(1) >= options_.streams_max) {
    stream_count_.fetch_sub(1);
    return absl::ResourceExhaustedError(
        absl::StrCat("the router has ", options_.streams_max, " calls inside, and takes no more"));
  }
  if (queue_.TryPush(Arrived{std::move(request), stream})) return absl::OkStatus();
  stream_count_.fetch_sub(1);
  return queue_.closed() ? absl::UnavailableError("the router is shutting down")
                         : absl::ResourceExhaustedError("the router cannot keep up");
}

void RouterLoop::CallDone(ClientStream* stream) {
  ended_calls_.Remove(stream);
  stream_count_.fetch_sub(1);
}

// A cancel that finds no room is noticed when the stream refuses its next message.
void RouterLoop::Cancel(RequestId id) { (void)queue_.TryPush(Cancelled{id}, cancel_room()); }

absl::Status RouterLoop::Query(std::function<void(RouterCore&)> query) {
  const bool has_room = query_count_.fetch_add(1) < kQueriesMax;
  if (has_room && queue_.TryPush(Asked{std::move(query)})) return absl::OkStatus();
  query_count_.fetch_sub(1);
  return queue_.closed() ? absl::UnavailableError("the router is shutting down")
                         : absl::ResourceExhaustedError("too many questions wait for the router");
}

void RouterLoop::SetWorkers(v1::Role role, std::vector<std::string> addresses) {
  const bool pushed =
      queue_.TryPush(WorkersNamed{role, std::move(addresses)}, failed_attempt_room());
  if (!pushed && !queue_.closed()) {
    LogWarning("worker addresses dropped, the router cannot keep up");
  }
}

void RouterLoop::Drain() { (void)queue_.TryPush(DrainAsked{}); }

void RouterLoop::Stop(Duration grace) {
  if (stopped_) return;
  stopped_ = true;
  Drain();
  {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&drained_), absl::FromChrono(grace));
  }
  queue_.Close();
  thread_.join();
}

void RouterLoop::Run() {
  Instant metrics_due{};
  Instant tick_due{};
  bool closed = false;
  while (!closed) {
    // Read before the queue is emptied: what was pushed before it was closed is still inside.
    closed = queue_.closed();
    const Duration wait = std::clamp(tick_due - Now(), Duration::zero(), options_.tick);
    std::vector<Happening> happenings = queue_.WaitAll(absl::FromChrono(wait));
    const Instant now = Now();
    for (Happening& happening : happenings) Apply(std::move(happening), now);
    if (now >= tick_due) {
      core_.OnTick(now);
      ready_.store(core_.workers().AnyReady(v1::ROLE_DECODE));
      tick_due = now + options_.tick;
    }
    Perform();
    ended_calls_.CutDue(now);
    if (now >= metrics_due) {
      metrics_->Update(core_);
      metrics_due = now + kMetricsInterval;
    }
    absl::MutexLock lock(&mutex_);
    drained_ = draining_ && core_.request_count() == 0;
  }
  core_.EndAll(
      absl::UnavailableError("the router has shut down; the call continues elsewhere if sent again "
                             "with its seed and the tokens received as generated_ids"),
      Now());
  Perform();
  metrics_->Update(core_);
  links_.clear();
}

void RouterLoop::Apply(Happening happening, Instant now) {
  std::visit(Overloaded{
                 [&](Arrived& arrived) {
                   streams_[arrived.request.id] = arrived.stream;
                   core_.OnRequest(std::move(arrived.request), now);
                 },
                 [&](Cancelled& cancelled) { core_.OnCancel(cancelled.id, now); },
                 [&](WorkersNamed& named) { ApplyWorkers(named); },
                 [&](WorkerUp& up) {
                   const auto link = links_.find(up.worker);
                   if (link == links_.end()) return;
                   link->second->session = up.session;
                   core_.OnWorkerUp(up.worker, up.hello, now);
                 },
                 [&](WorkerSaid& said) { core_.OnWorkerEvent(said.worker, said.event, now); },
                 [&](WorkerDown& down) { ApplyDown(down.worker, down.status, now); },
                 [&](Asked& asked) {
                   query_count_.fetch_sub(1);
                   asked.query(core_);
                 },
                 [&](DrainAsked&) {
                   draining_ = true;
                   core_.Drain();
                 },
             },
             happening);
}

void RouterLoop::ApplyWorkers(const WorkersNamed& named) {
  const std::set<std::string> wanted(named.addresses.begin(), named.addresses.end());
  std::set<std::string> known;
  std::vector<WorkerId> gone;
  for (const auto& [id, link] : links_) {
    if (core_.workers().Find(id)->role != named.role) continue;
    known.insert(link->address());
    link->named = wanted.contains(link->address());
    if (!link->named && link->session == SessionNumber{}) gone.push_back(id);
  }
  for (const WorkerId id : gone) {
    links_.erase(id);
    core_.RemoveWorker(id);
  }
  for (const std::string& address : wanted) {
    if (known.contains(address)) continue;
    if (links_.size() >= options_.workers_max) {
      LogWarning("too many workers", {{"left_out", address}, {"max", options_.workers_max}});
      return;
    }
    const WorkerId id = core_.AddWorker(address, named.role);
    links_[id] = std::make_unique<WorkerLink>(this, id, address);
  }
}

void RouterLoop::ApplyDown(WorkerId worker, const absl::Status& status, Instant now) {
  const auto it = links_.find(worker);
  if (it == links_.end()) return;
  it->second->session = SessionNumber{};
  core_.OnWorkerDown(worker, status, now);
  if (it->second->named) return;
  links_.erase(it);
  core_.RemoveWorker(worker);
}

void RouterLoop::Perform() {
  // Performing may cause actions anew, of clients that turn out to be gone.
  for (std::vector<Action> actions = core_.TakeActions(); !actions.empty();
       actions = core_.TakeActions()) {
    for (Action& action : actions) {
      std::visit(Overloaded{
                     [&](SendCommand& send) { PerformSend(std::move(send)); },
                     [&](Accept& accept) { PerformAccept(accept); },
                     [&](Emit& emit) { PerformEmit(std::move(emit)); },
                     [&](Finish& finish) { PerformFinish(finish); },
                     [&](Note& note) {
                       LogInfo("router", {{"note", note.text}});
                     },
                 },
                 action);
    }
  }
}

void RouterLoop::PerformSend(SendCommand send) {
  const auto link = links_.find(send.worker);
  // A session that cannot take it has broken; its OnDown is on the way.
  if (link != links_.end()) (void)link->second->Send(std::move(send.command));
}

void RouterLoop::PerformAccept(const Accept& accept) {
  const auto it = streams_.find(accept.request);
  BATON_CHECK(it != streams_.end());
  it->second->Accept();
}

void RouterLoop::PerformEmit(Emit emit) {
  const auto it = streams_.find(emit.request);
  BATON_CHECK(it != streams_.end());
  metrics_->OnEmit(emit);
  ClientStream* stream = it->second;
  core_.OnWritten(emit.request, stream->TakeWrittenBytes());
  if (!stream->Write(std::move(emit.delta), emit.bytes)) core_.OnCancel(emit.request, Now());
}

void RouterLoop::PerformFinish(const Finish& finish) {
  const auto it = streams_.find(finish.request);
  BATON_CHECK(it != streams_.end());
  metrics_->OnFinish(finish);
  ClientStream* stream = it->second;
  streams_.erase(it);
  ended_calls_.Add(stream, Now() + options_.client_read_max);
  stream->End(finish.status, finish.finished, finish.retry_after_ms);
}

}  // namespace baton
