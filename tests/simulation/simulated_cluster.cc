#include "tests/simulation/simulated_cluster.h"

#include <algorithm>
#include <variant>

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kBusyStep = milliseconds(1);
constexpr Duration kIdleStep = milliseconds(5);
constexpr Duration kRouterTick = milliseconds(20);
constexpr Duration kLoadInterval = milliseconds(100);
// After so long without a message a session is broken.
constexpr Duration kSilence = milliseconds(300);
// How late the end of a request may be.
constexpr Duration kGrace = milliseconds(100);
// After the last fault everything must end within this time, and be at rest a little later.
constexpr Duration kEndsWithin = seconds(60);
constexpr Duration kRestsWithin = seconds(5);

CoreOptions OptionsOf(const FaultPlan& plan) {
  CoreOptions options;
  options.retries_max = plan.retries_max;
  options.queue_time_max = plan.unlimited_retries() ? std::chrono::hours(1) : seconds(20);
  options.prefill_tokens_max = 64;
  options.local_prefill_tokens_max = plan.local_prefill_tokens_max;
  options.client_buffer_bytes_max = plan.slow_clients ? 300 : 1u << 20;
  options.pairs = {.probes_per_worker_max = 2,
                   .probe_timeout = milliseconds(400),
                   .backoff_min = milliseconds(20),
                   .backoff_max = milliseconds(300)};
  options.cluster.vocab_size = kSimulatedVocabulary;
  return options;
}

}  // namespace

void Happened::Add(const Happened& other) {
  requests += other.requests;
  completed += other.completed;
  retries += other.retries;
  moves += other.moves;
  moves_failed += other.moves_failed;
  crashes += other.crashes;
  sessions_broken += other.sessions_broken;
  pauses += other.pauses;
  drains += other.drains;
  router_crashes += other.router_crashes;
  transfers_acked += other.transfers_acked;
  transfers_failed += other.transfers_failed;
  force_closes += other.force_closes;
  checksum_mismatches += other.checksum_mismatches;
  messages_refused += other.messages_refused;
  preempted += other.preempted;
  swapped += other.swapped;
  steps_ahead += other.steps_ahead;
}

std::string Happened::ToString() const {
  return absl::StrCat(
      "requests ", requests, ", completed ", completed, ", retries ", retries, ", moves ", moves,
      ", moves failed ", moves_failed, "\nworkers killed ", crashes, ", paused ", pauses,
      ", drained ", drains, ", routers killed ", router_crashes, ", sessions broken ",
      sessions_broken, "\ntransfers acknowledged ", transfers_acked, ", failed ", transfers_failed,
      ", connections closed by force ", force_closes, "\nmessages refused ", messages_refused,
      ", checksum mismatches ", checksum_mismatches, ", sequences preempted ", preempted,
      ", came back with their KV ", swapped, "\nsteps started ahead ", steps_ahead);
}

SimulatedCluster::SimulatedCluster(uint64_t seed, Record& record)
    : dice_(seed),
      record_(record),
      rare_(~seed),
      plan_(DrawPlan(dice_, rare_, Dice(3 * seed + 1))),
      latency_max_(dice_.Between(milliseconds(1), milliseconds(20))),
      delivery_(new SimulatedDelivery(plan_, faults_, now_, dice_.Roll())),
      network_(std::unique_ptr<DeliveryPolicy>(delivery_)) {
  for (uint32_t i = 0; i < plan_.prefill_workers + plan_.decode_workers; ++i) {
    const bool prefill = i < plan_.prefill_workers;
    Place& place = places_.emplace_back();
    place.name =
        prefill ? absl::StrCat("prefill_", i) : absl::StrCat("decode_", i - plan_.prefill_workers);
    place.role = prefill ? v1::ROLE_PREFILL : v1::ROLE_DECODE;
    place.blocks = prefill ? plan_.prefill_blocks : plan_.DecodeBlocks(i - plan_.prefill_workers);
    place.starts_at = now_;
    if (plan_.late_workers) place.starts_at += dice_.Between(Duration::zero(), seconds(1));
  }
  StartRouter();
  for (uint32_t i = 0; i < plan_.requests; ++i) {
    Wish wish = DrawWish(dice_);
    if (i > 0 && dice_.Chance(0.15)) {
      const uint32_t tokens_max = wish.total_tokens_max - static_cast<uint32_t>(wish.prompt.size());
      wish.prompt = Quote(clients_[dice_.Below(i)].wish(), plan_.window, dice_);
      wish.total_tokens_max = static_cast<uint32_t>(wish.prompt.size()) + tokens_max;
    }
    if (rare_.Chance(plan_.open_ended)) {
      wish.open_ended = true;
      wish.total_tokens_max = kSimulatedContext;
    }
    SimulatedClient& client = clients_.emplace_back(absl::StrCat("client_", i), std::move(wish));
    client.calls_at = now_ + dice_.Between(Duration::zero(), plan_.arrivals);
    if (dice_.Chance(plan_.cancelled)) {
      client.cancels_at = client.calls_at + dice_.Between(Duration::zero(), milliseconds(500));
    }
    if (dice_.Chance(plan_.with_deadline)) {
      client.deadline = client.calls_at + dice_.Between(milliseconds(1), seconds(2));
    }
  }
  happened_.requests = plan_.requests;
}

SimulatedCluster::~SimulatedCluster() = default;

Happened SimulatedCluster::Run() {
  Duration step = kBusyStep;
  const auto answered = [this] {
    return std::all_of(clients_.begin(), clients_.end(),
                       [](const SimulatedClient& client) { return client.over; });
  };
  const auto advance = [this, &step] {
    now_ += step;
    network_.AdvanceTo(static_cast<uint64_t>((now_ - start_) / SimulatedDelivery::kStep));
    if (faults_) Strike();
    step = Tick() ? kBusyStep : kIdleStep;
    CheckNow();
  };
  while (!answered() && !record_.violation()) {
    advance();
    if (faults_ && now_ - start_ >= plan_.faults_last) {
      record_.Tell(now_, "no more faults");
      faults_ = false;
    }
    if (now_ - start_ > plan_.faults_last + kEndsWithin) {
      record_.Violated(now_, "a request does not end, though all faults have");
    }
  }
  faults_ = false;
  const Instant answered_at = now_;
  while (now_ - answered_at < kRestsWithin && !record_.violation()) advance();
  if (!record_.violation()) CheckAtRest();
  return Total();
}

// ---- Routers and workers, and their sessions ----------------------------------------------------

void SimulatedCluster::StartRouter() {
  router_ = std::make_unique<RouterCore>(OptionsOf(plan_));
  router_incarnation_ = Incarnation{next_incarnation_++};
  for (Place& place : places_) {
    place.id = router_->AddWorker(place.name, place.role);
    place.connects_at = now_ + dice_.Between(Duration::zero(), milliseconds(50));
  }
}

void SimulatedCluster::StartWorker(Place& place) {
  const Incarnation incarnation{next_incarnation_++};
  // Sometimes it gets the address of its former life.
  const std::string address =
      dice_.Chance(0.5) ? place.name : absl::StrCat(place.name, "_", Raw(incarnation));
  place.worker = std::make_unique<SimulatedWorker>(
      address, place.role, incarnation, plan_, place.blocks, network_, now_, dice_.Roll(), record_);
  record_.Tell(now_, place.name, ": life ", Raw(incarnation), " begins at ", address);
}

void SimulatedCluster::Kill(Place& place, Duration back_after) {
  record_.Tell(now_, place.name, ": killed");
  Collect(*place.worker);
  place.worker.reset();
  place.worker_up = false;
  place.commands.clear();
  place.orphans.clear();
  place.paused_until = {};
  place.gone_by = kNever;
  place.engine_ready = {};
  place.starts_at = now_ + back_after;
  Break(place, dice_.Between(Duration::zero(), milliseconds(20)), Duration::zero());
}

void SimulatedCluster::Connect(Place& place) {
  // A later session retires the one before.
  if (place.worker_up && place.router == router_incarnation_) {
    place.worker->CloseSession(place.router);
  } else if (place.worker_up) {
    place.orphans.push_back({place.worker_hears, place.router});
  }
  place.commands.clear();
  place.events.clear();
  place.breaking = false;
  place.router_up = place.worker_up = true;
  place.router = router_incarnation_;
  place.worker->OpenSession(place.router);
  record_.Tell(now_, place.name, ": session begins");
  router_->OnWorkerUp(place.id, place.worker->Hello(), now_);
}

void SimulatedCluster::Break(Place& place, Duration router_hears, Duration worker_hears) {
  if (place.breaking || !place.router_up) return;
  ++happened_.sessions_broken;
  record_.Tell(now_, place.name, ": session breaks");
  place.breaking = true;
  place.router_hears = now_ + router_hears;
  place.worker_hears = now_ + worker_hears;
  place.commands.resize(dice_.Below(static_cast<uint32_t>(place.commands.size()) + 1));
  place.events.resize(dice_.Below(static_cast<uint32_t>(place.events.size()) + 1));
}

bool SimulatedCluster::MoveSessions(Place& place) {
  bool any = false;
  std::erase_if(place.orphans, [&](const Timed<Incarnation>& orphan) {
    if (orphan.due > now_ || !Alive(place)) return false;
    place.worker->CloseSession(orphan.message);
    return true;
  });
  if (now_ < place.cut_until && !place.breaking) return any;
  if (place.worker != nullptr && place.worker_up) {
    while (!place.commands.empty() && place.commands.front().due <= now_) {
      place.worker->Deliver(place.router, std::move(place.commands.front().message));
      place.commands.pop_front();
      any = true;
    }
    if (place.breaking && place.worker_hears <= now_ && Alive(place)) {
      place.worker->CloseSession(place.router);
      place.worker_up = false;
      place.commands.clear();
    }
  }
  while (place.router_up && !place.events.empty() && place.events.front().due <= now_) {
    const v1::Event event = std::move(place.events.front().message);
    place.events.pop_front();
    if (!event.has_load()) {
      record_.Tell(now_, place.name, " -> ", record_.telling() ? event.ShortDebugString() : "");
    }
    router_->OnWorkerEvent(place.id, event, now_);
    any = true;
  }
  if (place.breaking && place.router_up && place.router_hears <= now_) {
    place.router_up = false;
    place.events.clear();
    place.connects_at =
        std::max(place.cut_until, now_ + dice_.Between(milliseconds(1), milliseconds(100)));
    router_->OnWorkerDown(place.id, absl::UnavailableError("the session broke"), now_);
    any = true;
  }
  if (!place.router_up && place.connects_at <= now_ && Alive(place)) {
    Connect(place);
    any = true;
  }
  return any;
}

// ---- Time ---------------------------------------------------------------------------------------

bool SimulatedCluster::Tick() {
  bool any = RunClients();
  for (Place& place : places_) {
    if (place.worker == nullptr && place.starts_at <= now_) StartWorker(place);
    any |= MoveSessions(place);
  }
  any |= Perform();
  const uint32_t first = dice_.Below(static_cast<uint32_t>(places_.size()));
  for (size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[(first + i) % places_.size()];
    if (Alive(place)) any |= RunWorker(place);
  }
  if (now_ >= next_load_) {
    for (Place& place : places_) {
      if (Alive(place) && place.router_up && !place.breaking) {
        place.events.push_back({now_ + latency_max_, place.worker->LoadEvent()});
      }
    }
    next_load_ = now_ + kLoadInterval;
  }
  if (now_ >= next_router_tick_) {
    router_->OnTick(now_);
    next_router_tick_ = now_ + kRouterTick;
  }
  return Perform() || any;
}

bool SimulatedCluster::RunWorker(Place& place) {
  SimulatedWorker& worker = *place.worker;
  bool any = false;
  // Sometimes one thread sleeps while the other makes several rounds.
  if (!dice_.Chance(0.1)) any |= worker.RunTransfers();
  if (place.engine_ready <= now_ && !dice_.Chance(0.1)) {
    if (worker.RunEngine()) {
      any = true;
      place.engine_ready = now_ + dice_.Between(std::chrono::microseconds(100), plan_.step_max);
    }
  }
  for (auto& [router, event] : worker.TakeEvents()) {
    if (!place.router_up || place.breaking || router != place.router) continue;
    const Instant last = place.events.empty() ? now_ : place.events.back().due;
    place.events.push_back({std::max(last, now_ + Latency()), std::move(event)});
  }
  if (worker.draining() && place.gone_by == kNever) {
    place.gone_by = now_ + dice_.Between(milliseconds(10), seconds(2));
  }
  const bool said_all = place.events.empty();
  if (worker.draining() && ((worker.idle() && said_all) || place.gone_by <= now_)) {
    Kill(place, dice_.Between(milliseconds(10), milliseconds(500)));
  }
  return any;
}

bool SimulatedCluster::Perform() {
  bool any = false;
  for (std::vector<Action> actions = router_->TakeActions(); !actions.empty();
       actions = router_->TakeActions()) {
    any = true;
    for (Action& action : actions) {
      if (auto* send = std::get_if<SendCommand>(&action)) {
        PerformSend(std::move(*send));
      } else if (const auto* emit = std::get_if<Emit>(&action)) {
        PerformEmit(*emit);
      } else if (const auto* finish = std::get_if<Finish>(&action)) {
        PerformFinish(*finish);
      } else if (const auto* note = std::get_if<Note>(&action)) {
        record_.Tell(now_, "router: ", note->text);
      }
    }
  }
  return any;
}

void SimulatedCluster::PerformSend(SendCommand send) {
  Place* place = Find(send.worker);
  if (place == nullptr || !place->router_up || place->breaking) return;
  const Instant last = place->commands.empty() ? now_ : place->commands.back().due;
  place->commands.push_back({std::max(last, now_ + Latency()), std::move(send.command)});
}

// ---- Clients ------------------------------------------------------------------------------------

bool SimulatedCluster::RunClients() {
  bool any = false;
  for (SimulatedClient& client : clients_) {
    if (client.over) continue;
    if (!client.call && client.calls_at <= now_) {
      const RequestId id{next_request_++};
      calls_[id] = &client;
      record_.Tell(now_, client.name(), " calls, having received ", client.received());
      router_->OnRequest(client.Call(id, now_), now_);
      any = true;
    } else if (client.call && client.cancels_at <= now_) {
      router_->OnCancel(*client.call, now_);
      any = true;
    }
  }
  return any;
}

void SimulatedCluster::PerformEmit(const Emit& emit) {
  const auto call = calls_.find(emit.request);
  if (call == calls_.end()) return record_.Violated(now_, "a message after the end of its request");
  record_.Tell(now_, call->second->name(), " receives ",
               record_.telling() ? emit.delta.ShortDebugString() : "");
  if (const auto wrong = call->second->OnDelta(emit.delta)) record_.Violated(now_, *wrong);
  if (!plan_.slow_clients || dice_.Chance(0.5)) router_->OnWritten(emit.request, emit.bytes);
}

void SimulatedCluster::PerformFinish(const Finish& finish) {
  const auto call = calls_.find(finish.request);
  if (call == calls_.end()) return record_.Violated(now_, "a request ended twice");
  SimulatedClient& client = *call->second;
  calls_.erase(call);
  client.call.reset();
  client.over = true;
  record_.Tell(now_, client.name(), " ends: ", finish.status.ToString());
  if (finish.status.ok()) ++happened_.completed;
  if (const auto wrong = client.Judge(finish.status, finish.finished.reason(), plan_)) {
    record_.Violated(now_, *wrong);
  }
}

// ---- Faults -------------------------------------------------------------------------------------

void SimulatedCluster::Strike() {
  const auto strikes = [this](double per_second) {
    return per_second > 0 && dice_.Chance(per_second * 0.001);
  };
  Place& place = places_[dice_.Below(static_cast<uint32_t>(places_.size()))];
  if (strikes(plan_.router_crashes)) CrashRouter();
  if (strikes(plan_.session_breaks)) {
    Break(place, dice_.Between(Duration::zero(), milliseconds(50)),
          dice_.Between(Duration::zero(), milliseconds(50)));
  }
  if (strikes(plan_.session_cuts)) {
    const Duration length = dice_.Between(milliseconds(10), milliseconds(800));
    record_.Tell(now_, place.name, ": cut off from the router");
    place.cut_until = now_ + length;
    if (length > kSilence) {
      Break(place, kSilence + dice_.Between(Duration::zero(), milliseconds(100)),
            kSilence + dice_.Between(Duration::zero(), milliseconds(100)));
    }
  }
  if (strikes(plan_.pair_cuts)) {
    const Place& other = places_[dice_.Below(static_cast<uint32_t>(places_.size()))];
    if (place.worker != nullptr && other.worker != nullptr && &place != &other) {
      record_.Tell(now_, place.name, " and ", other.name, ": cut off from each other");
      delivery_->Cut(place.worker->Hello().transfer_address(),
                     other.worker->Hello().transfer_address(),
                     now_ + dice_.Between(milliseconds(10), milliseconds(1000)), dice_.Chance(0.5));
    }
  }
  if (Alive(place)) StrikeWorker(place);
}

void SimulatedCluster::StrikeWorker(Place& place) {
  const auto strikes = [this](double per_second) {
    return per_second > 0 && dice_.Chance(per_second * 0.001);
  };
  if (strikes(plan_.engine_errors)) place.worker->FailNextStep();
  if (strikes(plan_.crashes)) {
    ++happened_.crashes;
    Kill(place, dice_.Between(milliseconds(1), milliseconds(500)));
  } else if (strikes(plan_.pauses)) {
    ++happened_.pauses;
    const Duration length = dice_.Between(milliseconds(10), milliseconds(900));
    record_.Tell(now_, place.name, ": stopped for ", ToMilliseconds(length), " ms");
    place.paused_until = now_ + length;
    if (length > kSilence) Break(place, kSilence, length);
  } else if (strikes(plan_.drains) && !place.worker->draining()) {
    Drain(place);
  }
}

// As by SIGTERM, or as by `baton drain`, which may be lost with the session.
void SimulatedCluster::Drain(Place& place) {
  ++happened_.drains;
  if (dice_.Chance(0.5)) {
    record_.Tell(now_, place.name, ": drains");
    place.worker->BeginDrain();
  } else if (router_->DrainWorker(place.name, now_).ok()) {
    record_.Tell(now_, place.name, ": the router is asked to drain it");
    place.told_to_drain = router_->workers().Find(place.id)->incarnation();
  }
}

void SimulatedCluster::CrashRouter() {
  ++happened_.router_crashes;
  record_.Tell(now_, "the router is killed");
  for (Place& place : places_) {
    // Of a session that breaks already the worker hears at its time.
    if (place.worker_up && !place.breaking) {
      place.worker_hears = now_ + dice_.Between(Duration::zero(), kSilence);
      place.commands.resize(dice_.Below(static_cast<uint32_t>(place.commands.size()) + 1));
    }
    place.breaking = place.worker_up;
    place.router_up = false;
    place.events.clear();
    place.told_to_drain = {};
  }
  for (auto& [id, client] : calls_) {
    client->call.reset();
    client->calls_at = now_ + dice_.Between(milliseconds(1), milliseconds(200));
  }
  calls_.clear();
  CollectRouter();
  StartRouter();
}

// ---- Rules --------------------------------------------------------------------------------------

void SimulatedCluster::CheckNow() {
  for (const SimulatedClient& client : clients_) {
    if (client.call && client.deadline != kNever && now_ > client.deadline + kGrace) {
      record_.Violated(now_, absl::StrCat(client.name(), " is served after its deadline"));
    }
  }
  if (router_->counters().conflicts > 0) {
    record_.Violated(now_, "workers gave different tokens for the same context");
  }
}

void SimulatedCluster::CheckAtRest() {
  for (Place& place : places_) {
    if (place.worker == nullptr) continue;
    place.worker->CheckAtRest();
    if (place.told_to_drain == place.worker->incarnation() && !place.worker->draining()) {
      record_.Violated(now_, absl::StrCat(place.name, " was to drain and has not heard of it"));
    }
  }
  if (router_->request_count() > 0 || router_->attempt_count() > 0 || router_->queued_count() > 0 ||
      router_->queued_tokens() > 0) {
    record_.Violated(now_, "the router still has requests at rest");
  }
  for (const auto& [id, worker] : router_->workers().all()) {
    if (worker.attempts == 0 && worker.prefill_tokens == 0) continue;
    record_.Violated(now_,
                     absl::StrCat("the router still counts ", worker.attempts, " placements and ",
                                  worker.prefill_tokens, " tokens on ", worker.address));
  }
}

Happened SimulatedCluster::Total() {
  for (const Place& place : places_) {
    if (place.worker != nullptr) Collect(*place.worker);
  }
  CollectRouter();
  return happened_;
}

void SimulatedCluster::CollectRouter() {
  const CoreCounters& counters = router_->counters();
  for (const uint64_t retries : counters.retries) happened_.retries += retries;
  happened_.moves += counters.moves;
  happened_.moves_failed += counters.moves_failed;
}

void SimulatedCluster::Collect(const SimulatedWorker& worker) {
  const KvReceiver::Counters& in = worker.received();
  const KvSender::Counters& out = worker.sent();
  happened_.transfers_acked += out.acked;
  happened_.transfers_failed += out.failed;
  happened_.force_closes += in.force_closes + out.force_closes;
  happened_.checksum_mismatches += in.checksum_mismatches;
  if (in.checksum_mismatches > 0 && plan_.corrupt == 0) {
    record_.Violated(now_, absl::StrCat(worker.name(), ": bytes changed under way"));
  }
  happened_.messages_refused += in.refused_unknown_lease + in.refused_stale + in.refused_range +
                                in.refused_overlap + in.refused_size;
  happened_.preempted += worker.stats().preempted;
  happened_.swapped += worker.stats().swapped_in;
  happened_.steps_ahead += worker.stats().steps_ahead;
}

SimulatedCluster::Place* SimulatedCluster::Find(WorkerId id) {
  for (Place& place : places_) {
    if (place.id == id) return &place;
  }
  return nullptr;
}

}  // namespace baton
