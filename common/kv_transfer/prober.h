// Measures a pair of workers with real messages of KV size, and answers others who measure. Where
// KV passes through memory of a GPU, so do these messages, while there is room for them.
//
// A probe is three rounds: an empty one that brings the connection up, an empty one that is timed,
// and one that carries bytes both ways and is timed. Single-threaded, without a clock.
#ifndef BATON_COMMON_KV_TRANSFER_PROBER_H_
#define BATON_COMMON_KV_TRANSFER_PROBER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/kv_transfer/handoff_codec.h"
#include "common/kv_transfer/kv_staging.h"
#include "common/kv_transfer/transfer_event.h"
#include "common/transport/transport.h"

namespace baton {

struct ProberOptions {
  size_t bytes = size_t{1} << 20;  // Each way, at most kBytesMax.
  Duration deadline = std::chrono::seconds(5);
  // How long buffers of an ended probe may stay in use before the connection is closed.
  Duration force_close_after = std::chrono::seconds(2);
};

class Prober {
 public:
  static constexpr size_t kBytesMax = size_t{16} << 20;
  // Probes of others that are answered at once; more are refused and time out over there.
  static constexpr size_t kAnswersMax = 8;
  // Own probes under way; the next one fails.
  static constexpr size_t kProbesMax = 64;

  // `clock` is read when an answer arrives. All references outlive the prober; the transport is
  // closed before it, or never polled again.
  // `staging` is that of receives: whoever waits for room there is asked again.
  Prober(Transport& transport, const ProberOptions& options, KvStaging& staging,
         TransferEventSink sink, std::function<Instant()> clock);
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

  void Probe(ProbeId id, const std::string& address, Instant now);
  void OnPeerLost(PeerId peer, const absl::Status& status);
  // Fails what is under way.
  void FailAll(const absl::Status& status);

  void Tick(Instant now);
  // When Tick has something to do; kNever.
  Instant next_deadline() const;

 private:
  // Bytes that the transport reads or writes.
  class Buffer;
  enum Round : uint32_t { kConnect = 0, kLatency = 1, kBandwidth = 2 };
  struct Running {
    PeerId peer{};
    uint32_t round = kConnect;
    std::shared_ptr<Buffer> buffer;  // What goes out, then what comes back.
    uint64_t checksum = 0;
    Instant round_began;
    Instant deadline;
    double round_trip_ms = 0;
    bool landing = false;
  };
  // A buffer that the transport reads or writes: shared by sends and receives under way.
  struct InUse {
    PeerId peer{};
    std::weak_ptr<Buffer> buffer;
    Instant force_close_at;
  };

  void SendRound(ProbeId id, Running& probe);
  std::optional<Landing> OnProbe(const IncomingMessage& incoming);
  std::optional<Landing> OnReply(const IncomingMessage& incoming);
  void OnReplyLanded(ProbeId id, uint32_t round, const Buffer& buffer, const absl::Status& status);
  void Finish(ProbeId id, ProbeFinished result);

  Transport& transport_;
  const ProberOptions options_;
  KvStaging& staging_;
  const TransferEventSink sink_;
  const std::function<Instant()> clock_;
  std::map<ProbeId, Running> running_;
  std::vector<InUse> in_use_;  // By answers.
};

}  // namespace baton

#endif  // BATON_COMMON_KV_TRANSFER_PROBER_H_
