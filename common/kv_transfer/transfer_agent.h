// A worker's end of every handoff: the thread that moves KV in and out of its blocks.
//
// The agent owns the transfer thread, the transport, one KvSender and one KvReceiver over one
// KvArena. The thread sleeps until a command, a message or a timer is due.
//
// Thread-safe: commands may come from any thread; the commands of one thread about one lease or
// transfer are carried out in their order. Events are delivered on the transfer thread; the sink
// must not block and must not call Stop(). It may be called until Stop() has returned.
//
// Memory: what a thread wrote into source blocks before PushTransfer is what is sent; a GPU must
// have finished writing it, because copies do not wait for what is still being computed. What
// LeaseFilled announces is visible to whoever gets the event through a queue or lock.
#ifndef BATON_COMMON_KV_TRANSFER_TRANSFER_AGENT_H_
#define BATON_COMMON_KV_TRANSFER_TRANSFER_AGENT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv_cache/kv_arena.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/kv_transfer/ticket.h"
#include "common/kv_transfer/transfer_event.h"

namespace baton {

class Transport;

struct TransferOptions {
  // The numeric IP address on which other workers reach this one, at any free port. Empty: every
  // IPv4 address of the machine; the others find the best way.
  std::string listen_host;
  // A payload of at most so many bytes is copied through the transport's own buffers; a larger one
  // goes straight into the receiver's blocks.
  size_t eager_bytes_max = 2048;
  // Unacknowledged payload under way to one peer; what is beyond waits inside.
  size_t in_flight_bytes_max = size_t{64} << 20;
  // Of one KV message's payload; a push is split into so many messages as it needs. At least one
  // layer of one block, whatever it says.
  size_t message_bytes_max = size_t{8} << 20;
  // Without progress of what was pushed or committed; computing the prompt does not count, nor does
  // waiting behind other transfers that make progress.
  Duration transfer_deadline = std::chrono::seconds(10);
  // How long retired receives, or sends of an ended transfer, may stay under way before the
  // connection to that peer is closed by force.
  Duration force_close_after = std::chrono::seconds(2);
  // Memory through which KV passes if the blocks are on a GPU: so much for sends and as much for
  // receives, on each GPU if it is there. What finds no room in it waits. At least one layer of one
  // block.
  size_t staging_bytes = size_t{64} << 20;
  // Where it is. Absent: on the GPU if the transport reaches that, otherwise pinned.
  std::optional<StagingMemory> staging_memory = {};
  Duration probe_deadline = std::chrono::seconds(5);
  // Each way. At most 16 MiB.
  size_t probe_bytes = size_t{1} << 20;
  uint32_t leases_max = 4096;
  uint32_t transfers_max = 4096;
  // Pushes, begins and probes that wait for the transfer thread.
  uint32_t commands_max = 1u << 16;
};

// Totals since start, but for those named as of now.
struct TransferStats {
  uint64_t bytes_sent = 0;
  uint64_t bytes_received = 0;
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
  uint64_t transfers_acked = 0;
  uint64_t transfers_failed = 0;
  uint64_t leases_filled = 0;
  uint64_t leases_failed = 0;
  uint64_t force_closes = 0;
  uint64_t peers_lost = 0;
  // Messages refused, by reason.
  uint64_t refused_malformed = 0;
  uint64_t refused_unknown_lease = 0;
  uint64_t refused_stale = 0;    // Another nonce or epoch, or the epoch takes nothing any more.
  uint64_t refused_range = 0;    // Outside the lease.
  uint64_t refused_overlap = 0;  // Bytes that landed already.
  uint64_t refused_size = 0;     // The payload is not what the header says, or cannot be staged.
  uint64_t checksum_mismatches = 0;
  // As of now.
  uint32_t leases_open = 0;
  uint32_t transfers_open = 0;
  uint32_t receives_posted = 0;
  uint64_t bytes_in_flight = 0;
  uint64_t staging_bytes_sending = 0;
  uint64_t staging_bytes_receiving = 0;
};

class TransferAgent {
 public:
  // Starts the thread over UCX. `arena` outlives the agent. kUnavailable when UCX cannot start;
  // kResourceExhausted when there is no memory for staging; what kept the GPU's memory from being
  // used, if it was asked for.
  static absl::StatusOr<std::unique_ptr<TransferAgent>> Create(const TransferOptions& options,
                                                               const KvArena& arena,
                                                               TransferEventSink sink);
  // As Create, over a transport of the caller's making.
  static absl::StatusOr<std::unique_ptr<TransferAgent>> CreateOver(
      std::unique_ptr<Transport> transport, const TransferOptions& options, const KvArena& arena,
      TransferEventSink sink);

  TransferAgent(const TransferAgent&) = delete;
  TransferAgent& operator=(const TransferAgent&) = delete;
  // Stops.
  ~TransferAgent();

  // What others need to reach this agent: Ticket::address. Opaque bytes, constant.
  const std::string& address() const;
  // For logs and metrics: "ucx", "inproc".
  const std::string& transport_name() const;
  // Which memory the transport moves: "host cuda".
  const std::string& transport_memory() const;
  // What KV passes through on its way: "pinned" memory of the host, "device" memory of the GPUs, or
  // "none" if it lies where the host reads it.
  const char* staging() const;
  // Why it is pinned, if nobody asked for that: "this UCX moves no memory of GPUs, only host".
  const std::string& staging_reason() const;
  // For sends and receives together, of all GPUs; 0 for "none".
  size_t staging_bytes() const;
  TransferStats stats() const;

  // --- D: leases --------------------------------------------------------------------------------

  // From now on messages for this grant are taken. May be called before the ticket is sent: a
  // message that comes later finds the lease. A lease may be opened again with a higher epoch once
  // the lower one is retired; it need not be quiesced.
  // kInvalidArgument: the grant does not fit the arena's layout. kResourceExhausted: leases_max.
  // kUnavailable: stopped. On error nothing happened and no event follows.
  absl::Status OpenLease(LeaseGrant grant);

  // No new byte is taken for this epoch; LeaseQuiesced follows once none is under way, at the
  // latest a little after force_close_after. REQUIRES: opened, and not retired before.
  void RetireLease(LeaseId lease, Epoch epoch);

  // --- P: transfers -----------------------------------------------------------------------------

  // `blocks` cover tokens [0, ticket.prompt_tokens) of the sequence, in order; they stay pinned
  // until TransferReleased. kInvalidArgument: the ticket does not fit the arena's layout.
  // kResourceExhausted: transfers_max. On error nothing happened and no event follows.
  absl::Status BeginTransfer(TransferId id, Ticket ticket, std::vector<BlockId> blocks,
                             TransferShare share = {});

  // Sends K and V of `layers` x `tokens`, all heads of the share. Each (layer, token) is pushed
  // once, in any order; tokens that D holds are skipped. A transfer that has ended ignores it.
  // kResourceExhausted (commands_max): nothing happened; the caller should abort the transfer.
  absl::Status PushTransfer(TransferId id, IndexRange layers, IndexRange tokens);

  // After the last push; the acknowledgement is TransferAcked. kInvalidArgument: `first_token` has
  // more than CommittedToken::kLogprobBytesMax.
  absl::Status CommitTransfer(TransferId id, CommittedToken first_token);

  // Ends the transfer without Acked or Failed; TransferReleased follows. Nothing happens to a
  // transfer that has ended already.
  void AbortTransfer(TransferId id);

  // --- Both -------------------------------------------------------------------------------------

  // Sends probe_bytes to `address` and waits for as many back; ProbeFinished tells. The own address
  // is allowed: a worker is ready when this loopback passed.
  absl::Status Probe(ProbeId id, std::string address);

  // Ends every transfer and lease, closes the connections, joins the thread. Outstanding events
  // (Failed, Released, Quiesced) are delivered before it returns. Idempotent.
  void Stop();

 private:
  class Impl;
  explicit TransferAgent(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_TRANSFER_AGENT_H_
