// Goal: whatever order things happen in and whatever breaks, a client sees the tokens of an
// undisturbed run, strictly by index, and one end; and at rest nothing is left over, neither in the
// core nor on a worker. Method: the real core over a fleet of scripted workers whose answers,
// deaths, refusals and delays are drawn from a seed. A token is a hash of all before it, so a
// wrong, missing or resampled one is seen at once.
#include <random>

#include "router/core_driver.h"
#include "router/router_core.h"

namespace baton {
namespace {

using std::chrono::milliseconds;

constexpr TokenId kStopToken = 2;

// What every worker samples after these tokens.
TokenId NextToken(const std::vector<TokenId>& tokens) {
  uint64_t hash = 1469598103934665603ull;
  for (const TokenId token : tokens)
    hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211ull;
  hash ^= hash >> 29;
  return hash % 24 == 0 ? kStopToken : static_cast<TokenId>(3 + hash % 1000);
}

struct Job {
  std::vector<TokenId> tokens;
  uint32_t prompt_tokens = 0;
  uint32_t total_tokens_max = 0;
  uint32_t epoch = 0;       // D: of its lease. P: of its ticket, 0 without one.
  bool local = false;       // D computes the prompt itself.
  bool running = false;     // D: committed.
  bool first_sent = false;  // P: the first token is out.
  WorkerId target{};        // P: the worker of its ticket.

  uint32_t index() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens; }
  bool ended() const { return tokens.back() == kStopToken || tokens.size() >= total_tokens_max; }
  v1::FinishReason reason() const {
    return tokens.back() == kStopToken ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
  }
};

struct FakeWorker {
  v1::Role role = v1::ROLE_UNSPECIFIED;
  bool up = false;
  bool local_prefill = false;
  uint64_t incarnation = 0;
  std::map<uint64_t, Job> jobs;  // By attempt.
  std::deque<v1::Event> outbox;  // Said and not yet heard by the router.
};

class Fleet {
 public:
  explicit Fleet(uint64_t seed) : random_(seed) {
    const int prefill_count = Below(3);
    const int decode_count = 1 + Below(3);
    for (int i = 0; i < prefill_count; ++i) Add(v1::ROLE_PREFILL);
    for (int i = 0; i < decode_count; ++i) Add(v1::ROLE_DECODE);
    // Without a prefill worker somebody has to be able to prefill.
    if (prefill_count == 0) workers_.rbegin()->second.local_prefill = true;
  }

  void Step(bool faults) {
    const int dice = Below(100);
    if (dice < 10 && asked_.size() < 30) {
      Ask();
    } else if (dice < 40) {
      HandleCommand(Pick());
    } else if (dice < 65) {
      Work(Pick(), faults);
    } else if (dice < 90) {
      Deliver(Pick());
    } else if (dice < 98) {
      driver_.Advance(milliseconds(Below(20)));
    } else if (faults && Below(2) == 0) {
      Break(Pick());
    }
    for (const WorkerId id : ids_) {
      if (!workers_[id].up && (!faults || Below(20) == 0)) Start(id);
    }
  }
  void RunToTheEnd() {
    int steps = 0;
    while (driver_.core.request_count() > 0 && steps < 200000) {
      Step(/*faults=*/false);
      ++steps;
    }
    // Let the last cancels and events through.
    for (int i = 0; i < 3000; ++i) {
      const WorkerId id = Pick();
      HandleCommand(id);
      Deliver(id);
    }
  }
  void Check() {
    EXPECT_EQ(driver_.core.request_count(), 0u) << "a request is stuck";
    EXPECT_EQ(driver_.core.attempt_count(), 0u);
    EXPECT_EQ(driver_.core.queued_count(), 0u);
    EXPECT_EQ(driver_.core.queued_tokens(), 0u);
    for (const auto& [id, worker] : driver_.core.workers().all()) {
      EXPECT_EQ(worker.attempts, 0u) << worker.address;
      EXPECT_EQ(worker.prefill_tokens, 0u) << worker.address;
      EXPECT_TRUE(workers_[id].jobs.empty()) << worker.address << " still holds a request";
    }
    for (const auto& [id, prompt] : asked_) CheckOutcome(driver_.outcomes[id], prompt);
  }
  size_t completed() const { return completed_; }
  uint64_t retries() const {
    uint64_t sum = 0;
    for (const uint64_t count : driver_.core.counters().retries) sum += count;
    return sum;
  }

 private:
  struct Prompt {
    std::vector<TokenId> tokens;
    uint32_t prompt_tokens = 0;
    uint32_t total_tokens_max = 0;
  };

  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint64_t>(bound)); }
  WorkerId Pick() { return ids_[static_cast<size_t>(Below(static_cast<int>(ids_.size())))]; }

  void Add(v1::Role role) {
    const WorkerId id = driver_.core.AddWorker(absl::StrCat("w", ids_.size()), role);
    ids_.push_back(id);
    workers_[id].role = role;
    workers_[id].local_prefill = role == v1::ROLE_DECODE && Below(2) == 0;
  }
  void Start(WorkerId id) {
    FakeWorker& worker = workers_[id];
    worker.up = true;
    // Sometimes only the session broke.
    if (worker.incarnation == 0 || Below(2) == 0) worker.incarnation = next_incarnation_++;
    driver_.Up(id, CoreDriver::Hello(worker.role, worker.incarnation, worker.local_prefill));
  }
  void Break(WorkerId id) {
    FakeWorker& worker = workers_[id];
    if (!worker.up) return;
    if (Below(10) == 0) {
      v1::Event draining;
      draining.mutable_draining();
      worker.outbox.push_back(draining);
      return;
    }
    // An in-order prefix of what it said arrives.
    for (int i = Below(4); i > 0; --i) Deliver(id);
    worker.up = false;
    worker.jobs.clear();
    worker.outbox.clear();
    driver_.Down(id);
  }

  void Ask() {
    NewRequest request =
        driver_.Make(static_cast<uint32_t>(1 + Below(20)), static_cast<uint32_t>(1 + Below(12)));
    for (TokenId& token : request.tokens) token = 3 + Below(1000);
    if (Below(6) == 0) request.deadline = driver_.now + milliseconds(1 + Below(3000));
    request.priority = Below(3);
    const Prompt prompt{request.tokens, request.prompt_tokens, request.total_tokens_max};
    asked_[driver_.Submit(std::move(request))] = prompt;
    if (Below(8) == 0)
      driver_.Cancel(std::next(asked_.begin(), Below(static_cast<int>(asked_.size())))->first);
  }

  void Say(WorkerId id, v1::Event event) { workers_[id].outbox.push_back(std::move(event)); }
  void Deliver(WorkerId id) {
    auto& outbox = workers_[id].outbox;
    if (outbox.empty()) return;
    const v1::Event event = outbox.front();
    outbox.pop_front();
    driver_.Event(id, event);
  }

  static Job MakeJob(const v1::Work& work) {
    return Job{.tokens = {work.tokens().begin(), work.tokens().end()},
               .prompt_tokens = work.prompt_tokens(),
               .total_tokens_max = work.total_tokens_max()};
  }
  void SayAdmitted(WorkerId id, uint64_t attempt) {
    const Job& job = workers_[id].jobs[attempt];
    v1::Event event;
    event.mutable_admitted()->set_request(attempt);
    if (!job.local) {
      event.mutable_admitted()->mutable_ticket()->set_epoch(job.epoch);
      event.mutable_admitted()->mutable_ticket()->set_incarnation(Raw(id));
    }
    Say(id, event);
  }
  void HandleCommand(WorkerId id) {
    FakeWorker& worker = workers_[id];
    if (!worker.up || driver_.Idle(id)) return;
    const v1::Command command = driver_.Next(id);
    v1::Event event;
    if (command.has_probe()) {
      event.mutable_probe_result()->set_probe(command.probe().probe());
      event.mutable_probe_result()->set_ok(Below(8) != 0);
      Say(id, event);
    } else if (command.has_cancel()) {
      worker.jobs.erase(command.cancel().request());
    } else if (command.has_reopen()) {
      HandleReopen(id, command.reopen());
    } else if (command.has_admit()) {
      const uint64_t attempt = command.admit().work().request();
      if (Below(8) == 0) {
        event.mutable_rejected()->set_request(attempt);
        event.mutable_rejected()->set_code(8);  // RESOURCE_EXHAUSTED
        Say(id, event);
        return;
      }
      EXPECT_EQ(worker.jobs.count(attempt), 0u) << "an attempt id was used twice";
      worker.jobs[attempt] = MakeJob(command.admit().work());
      worker.jobs[attempt].epoch = 1;
      worker.jobs[attempt].local = command.admit().local_prefill();
      EXPECT_TRUE(!command.admit().local_prefill() || worker.local_prefill);
      SayAdmitted(id, attempt);
    } else if (command.has_prefill()) {
      Job job = MakeJob(command.prefill().work());
      job.epoch = command.prefill().ticket().epoch();
      job.target = WorkerId{static_cast<uint32_t>(command.prefill().ticket().incarnation())};
      worker.jobs[command.prefill().work().request()] = job;
    }
  }
  void HandleReopen(WorkerId id, const v1::Reopen& reopen) {
    const auto it = workers_[id].jobs.find(reopen.request());
    if (it == workers_[id].jobs.end()) return;  // Finished meanwhile; the router hears so.
    if (it->second.running) {
      v1::Event event;
      event.mutable_already_committed()->set_request(reopen.request());
      Say(id, event);
      return;
    }
    it->second.epoch += 1;
    it->second.local = reopen.local_prefill();
    SayAdmitted(id, reopen.request());
  }

  // One step of one of the worker's jobs.
  void Work(WorkerId id, bool faults) {
    FakeWorker& worker = workers_[id];
    if (!worker.up || worker.jobs.empty()) return;
    auto it = std::next(worker.jobs.begin(), Below(static_cast<int>(worker.jobs.size())));
    const bool fails = faults && Below(40) == 0;
    const bool done = worker.role == v1::ROLE_PREFILL
                          ? WorkPrefill(id, it->first, &it->second, fails)
                          : WorkDecode(id, it->first, &it->second, fails);
    if (done) worker.jobs.erase(it);
  }
  void SayPrefillFailed(WorkerId id, uint64_t attempt, uint32_t epoch, bool transfer) {
    v1::Event event;
    event.mutable_prefill_failed()->set_request(attempt);
    event.mutable_prefill_failed()->set_epoch(epoch);
    event.mutable_prefill_failed()->set_retryable(true);
    event.mutable_prefill_failed()->set_transfer(transfer);
    Say(id, event);
  }
  // Returns whether the job is over.
  bool WorkPrefill(WorkerId id, uint64_t attempt, Job* job, bool fails) {
    if (fails) {
      SayPrefillFailed(id, attempt, job->epoch, false);
      return true;
    }
    if (!job->first_sent) {
      job->tokens.push_back(NextToken(job->tokens));
      job->first_sent = true;
      v1::Event event;
      event.mutable_first_token()->set_request(attempt);
      event.mutable_first_token()->set_epoch(job->epoch);
      event.mutable_first_token()->mutable_token()->set_index(job->index() - 1);
      event.mutable_first_token()->mutable_token()->set_id(job->tokens.back());
      if (job->ended()) event.mutable_first_token()->set_terminal(job->reason());
      Say(id, event);
      return job->ended() || job->target == WorkerId{};
    }
    FakeWorker& decode = workers_[job->target];
    const auto lease = decode.jobs.find(attempt);
    if (lease == decode.jobs.end() || lease->second.epoch != job->epoch || lease->second.running) {
      SayPrefillFailed(id, attempt, job->epoch, true);
      return true;
    }
    EXPECT_EQ(lease->second.tokens.size() + 1, job->tokens.size());
    lease->second.running = true;
    SayDecoded(job->target, attempt, &lease->second, job->tokens.back());
    v1::Event event;
    event.mutable_prefill_done()->set_request(attempt);
    event.mutable_prefill_done()->set_epoch(job->epoch);
    Say(id, event);
    return true;
  }
  bool WorkDecode(WorkerId id, uint64_t attempt, Job* job, bool fails) {
    if (fails) {
      v1::Event event;
      event.mutable_failed()->set_request(attempt);
      event.mutable_failed()->set_retryable(true);
      Say(id, event);
      return true;
    }
    if (!job->running && !job->local) return false;
    job->running = true;
    if (!job->ended() || job->index() == 0) SayDecoded(id, attempt, job, NextToken(job->tokens));
    if (!job->ended()) return false;
    v1::Event event;
    event.mutable_finished()->set_request(attempt);
    event.mutable_finished()->set_reason(job->reason());
    Say(id, event);
    return true;
  }
  void SayDecoded(WorkerId id, uint64_t attempt, Job* job, TokenId token) {
    job->tokens.push_back(token);
    v1::Event event;
    v1::Tokens::Sequence* sequence = event.mutable_tokens()->add_sequences();
    sequence->set_request(attempt);
    sequence->set_epoch(job->epoch);
    v1::Token* said = sequence->add_tokens();
    said->set_index(job->index() - 1);
    said->set_id(token);
    Say(id, event);
  }

  void CheckOutcome(const Outcome& outcome, const Prompt& prompt) {
    std::vector<TokenId> expected = prompt.tokens;
    while (expected.size() < prompt.total_tokens_max &&
           (expected.size() == prompt.prompt_tokens || expected.back() != kStopToken)) {
      expected.push_back(NextToken(expected));
    }
    expected.erase(expected.begin(), expected.begin() + prompt.prompt_tokens);
    ASSERT_TRUE(outcome.finish.has_value()) << "a request never ended";
    if (outcome.finish->status.ok()) {
      EXPECT_EQ(outcome.tokens, expected);
      ++completed_;
      return;
    }
    EXPECT_TRUE(absl::IsUnavailable(outcome.finish->status) ||
                absl::IsDeadlineExceeded(outcome.finish->status) ||
                absl::IsCancelled(outcome.finish->status) ||
                absl::IsResourceExhausted(outcome.finish->status))
        << outcome.finish->status;
    ASSERT_LE(outcome.tokens.size(), expected.size());
    expected.resize(outcome.tokens.size());
    EXPECT_EQ(outcome.tokens, expected);
  }

  std::mt19937_64 random_;
  CoreDriver driver_;
  std::vector<WorkerId> ids_;
  std::map<WorkerId, FakeWorker> workers_;
  std::map<RequestId, Prompt> asked_;
  uint64_t next_incarnation_ = 100;
  size_t completed_ = 0;
};

class RouterCoreRandomTest : public testing::TestWithParam<uint64_t> {};

TEST_P(RouterCoreRandomTest, StreamsAreThoseOfAnUndisturbedRunAndNothingIsLeft) {
  Fleet fleet(GetParam());
  for (int step = 0; step < 1500; ++step) fleet.Step(/*faults=*/true);
  fleet.RunToTheEnd();
  fleet.Check();
}

INSTANTIATE_TEST_SUITE_P(Seeds, RouterCoreRandomTest, testing::Range<uint64_t>(1, 401));

// The test above would also pass if nothing ever worked, or nothing ever broke.
TEST(RouterCoreRandomCoverageTest, RunsHaveBothSuccessesAndRetries) {
  size_t completed = 0;
  uint64_t retries = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Fleet fleet(seed);
    for (int step = 0; step < 1500; ++step) fleet.Step(true);
    fleet.RunToTheEnd();
    fleet.Check();
    completed += fleet.completed();
    retries += fleet.retries();
  }
  EXPECT_GT(completed, 200u);
  EXPECT_GT(retries, 200u);
}

}  // namespace
}  // namespace baton
