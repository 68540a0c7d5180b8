// A worker process in the simulation: the production engine, transfer core, block pool and
// executor, a model whose tokens are hashes of what the KV cache holds, and a hand-cranked shell.
//
// The shell is that of common/worker/worker.cc and of TransferAgent: two threads, the engine's and
// the transfers', with a queue each way. The simulation decides which of them runs when.
#ifndef BATON_TESTS_SIMULATION_SIMULATED_WORKER_H_
#define BATON_TESTS_SIMULATION_SIMULATED_WORKER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/engine/executor.h"
#include "common/engine/ports.h"
#include "common/engine/testing/fake_model.h"
#include "common/engine/testing/starting_model.h"
#include "common/engine/worker_engine.h"
#include "common/kv_cache/block_pool.h"
#include "common/kv_transfer/transfer_core.h"
#include "common/transport/testing/inproc_transport.h"
#include "proto/worker.pb.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/fault_plan.h"
#include "tests/simulation/record.h"

namespace baton {

inline constexpr uint32_t kSimulatedVocabulary = 97;
inline constexpr uint32_t kSimulatedContext = 128;
inline constexpr uint32_t kSimulatedBlockTokens = 4;

class SimulatedWorker final : public EventPort, public TransferPort {
 public:
  // All references outlive the worker. `name` is its address on the network, of one life at a time.
  // `blocks`: of its KV cache.
  SimulatedWorker(std::string name, v1::Role role, Incarnation incarnation, const FaultPlan& plan,
                  uint32_t blocks, InprocNetwork& network, const Instant& now, uint64_t seed,
                  Record& record);
  // As kill -9: nobody is told.
  ~SimulatedWorker() override;

  const std::string& name() const { return name_; }
  v1::WorkerHello Hello() const;

  // The shell's queue of the engine's thread, in order.
  void OpenSession(Incarnation router) { inbox_.push_back(SessionOpened{router}); }
  void Deliver(Incarnation router, v1::Command command) {
    inbox_.push_back(Commanded{router, std::move(command)});
  }
  void CloseSession(Incarnation router) { inbox_.push_back(SessionClosed{router}); }
  void BeginDrain();
  // The next forward pass fails.
  void FailNextStep() { model_.FailNext(absl::InternalError("a planned error")); }

  // One round of each thread. Whether it did anything. Aborts when the ledger of blocks is unsound.
  bool RunTransfers();
  bool RunEngine();

  // What the engine has said since the last call.
  std::vector<std::pair<Incarnation, v1::Event>> TakeEvents() { return std::exchange(events_, {}); }
  v1::Event LoadEvent() const;
  bool draining() const { return draining_; }
  Incarnation incarnation() const { return incarnation_; }
  // No request, and nothing on its way to the engine.
  bool idle() const { return inbox_.empty() && commands_.empty() && engine_->idle(); }

  // REQUIRES: nothing has happened for a while. Every block is free or cached, no transfer is open.
  void CheckAtRest();

  const EngineStats& stats() const { return engine_->stats(); }
  const KvReceiver::Counters& received() const { return transfers_->receiver().counters(); }
  const KvSender::Counters& sent() const { return transfers_->sender().counters(); }

 private:
  struct SessionOpened {
    Incarnation router{};
  };
  struct Commanded {
    Incarnation router{};
    v1::Command command;
  };
  struct SessionClosed {
    Incarnation router{};
  };
  using InboxItem = std::variant<SessionOpened, Commanded, SessionClosed, TransferEvent>;
  class GuardedTransport;

  // EventPort.
  void Send(Incarnation router, v1::Event event) override;
  // TransferPort.
  const std::string& address() const override { return address_; }
  absl::Status OpenLease(LeaseGrant grant) override;
  void RetireLease(LeaseId lease, Epoch epoch) override;
  absl::Status BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks) override;
  absl::Status PushTransfer(TransferId id, IndexRange layers, IndexRange tokens) override;
  absl::Status CommitTransfer(TransferId id, CommittedToken first_token) override;
  void AbortTransfer(TransferId id) override;
  absl::Status Probe(ProbeId id, std::string address) override;

  const std::string name_;
  const v1::Role role_;
  const Incarnation incarnation_;
  const FaultPlan& plan_;
  const Instant& now_;
  Dice dice_;  // Nonces.
  Record& record_;

  FakeModel model_;
  StartingModel starting_model_{&model_};
  std::unique_ptr<Device> device_;
  std::unique_ptr<KvArena> arena_;
  BlockPool pool_;
  Executor executor_;
  std::string address_;
  std::vector<TransferCommand> commands_;  // Engine to transfers.
  std::deque<InboxItem> inbox_;            // To the engine.
  std::vector<std::pair<Incarnation, v1::Event>> events_;
  std::unique_ptr<TransferCore> transfers_;
  std::unique_ptr<WorkerEngine> engine_;
  std::vector<Incarnation> sessions_;  // Open ones, as the engine's thread knows them.
  Instant next_tick_{};
  bool draining_ = false;
  bool in_step_ = false;  // The engine's thread; it ends when that is run again.
};

}  // namespace baton

#endif  // BATON_TESTS_SIMULATION_SIMULATED_WORKER_H_
