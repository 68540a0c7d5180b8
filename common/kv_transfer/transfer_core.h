// A worker's end of every handoff, without a thread: one KvSender, one KvReceiver and one Prober
// over one transport, driven by commands.
//
// TransferAgent gives it a thread, a queue and a clock; simulation runs it by hand.
// Single-threaded.
#ifndef BATON_COMMON_KV_TRANSFER_TRANSFER_CORE_H_
#define BATON_COMMON_KV_TRANSFER_TRANSFER_CORE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/kv_receiver.h"
#include "common/kv_transfer/kv_sender.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/kv_transfer/prober.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_event.h"
#include "common/transport/transport.h"

namespace baton {

// What TransferAgent's methods of like names ask of its thread.
struct OpenCommand {
  LeaseGrant grant;
};
struct RetireCommand {
  LeaseId lease{};
  Epoch epoch{};
};
struct BeginCommand {
  TransferId id{};
  Ticket ticket;
  std::vector<BlockId> blocks;
  TransferShare share;
};
struct PushCommand {
  TransferId id{};
  IndexRange layers;
  IndexRange tokens;
};
struct CommitCommand {
  TransferId id{};
  CommittedToken first_token;
};
struct AbortCommand {
  TransferId id{};
};
struct ProbeCommand {
  ProbeId id{};
  std::string address;
};
using TransferCommand = std::variant<OpenCommand, RetireCommand, BeginCommand, PushCommand,
                                     CommitCommand, AbortCommand, ProbeCommand>;

struct TransferCoreOptions {
  KvSenderOptions sender;
  KvReceiverOptions receiver;
  ProberOptions prober;
};

class TransferCore {
 public:
  // Takes out what has been asked since the last call, in order.
  using TakeCommands = std::function<std::vector<TransferCommand>()>;

  // The staging's arena outlives the core. `take_commands` and `clock` are called by the methods
  // below, also from inside a callback of the transport.
  TransferCore(std::unique_ptr<Transport> transport, const TransferCoreOptions& options,
               TransferStaging staging, const TransferEventSink& sink, TakeCommands take_commands,
               std::function<Instant()> clock);
  // As Finish.
  ~TransferCore();
  TransferCore(const TransferCore&) = delete;
  TransferCore& operator=(const TransferCore&) = delete;

  // Carries out all commands, and what is due by the clock.
  void Advance();
  // As Transport's. After Finish: false.
  bool Poll();
  // False: there is work, do not sleep.
  bool Arm();
  // When Advance has something to do, commands aside; kNever.
  Instant next_deadline() const;
  // Sends or receives are under way.
  bool busy() const { return receiver_.posted_count() > 0 || sender_.open_count() > 0; }

  // Ends every transfer, lease and connection; all their events are out when it returns.
  // Idempotent; the last call to the core.
  void Finish();

  const KvReceiver& receiver() const { return receiver_; }
  const KvSender& sender() const { return sender_; }
  const TransferStaging& staging() const { return staging_; }
  uint64_t peers_lost() const { return peers_lost_; }

 private:
  void TakeLeaseCommands();
  void RunCommands();
  void Apply(const OpenCommand& command) { receiver_.Open(command.grant); }
  void Apply(const RetireCommand& command);
  void Apply(BeginCommand& command);
  void Apply(const PushCommand& command);
  void Apply(CommitCommand& command);
  void Apply(const AbortCommand& command) { sender_.Abort(command.id, clock_()); }
  void Apply(const ProbeCommand& command) { prober_.Probe(command.id, command.address, clock_()); }

  const TakeCommands take_commands_;
  const std::function<Instant()> clock_;
  const TransferStaging staging_;         // The transport reads and writes it until it is reset.
  std::unique_ptr<Transport> transport_;  // Reset before the cores that it calls back go.
  KvReceiver receiver_;
  KvSender sender_;
  Prober prober_;
  std::deque<TransferCommand> waiting_;  // All but lease commands, taken and not carried out yet.
  uint64_t peers_lost_ = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_TRANSFER_CORE_H_
