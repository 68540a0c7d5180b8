// Messages between workers. The receiver decides where a payload lands, so no peer can write into
// memory that has been given to somebody else.
//
// A message is a small header, copied when it is sent, and a payload that is gathered from the
// sender's memory and scattered into the receiver's. Messages to one peer may overtake each other.
//
// Single-threaded: every call comes from one thread at a time. Every callback runs inside Poll()
// (or the destructor), never inside another call; a callback may call everything but Poll().
#ifndef BATON_COMMON_TRANSPORT_TRANSPORT_H_
#define BATON_COMMON_TRANSPORT_TRANSPORT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

// One connection to another transport, from either side. Never used again after it is lost: a new
// Connect() to the same address gives another one.
enum class PeerId : uint64_t {};

// What a message is for; chosen by the layer above.
using MessageType = uint8_t;

using ConstSpan = std::span<const std::byte>;
using MutableSpan = std::span<std::byte>;

// Where an accepted payload goes, and who is told.
struct Landing {
  // Filled in order. Together exactly as long as the payload; valid until `landed` runs.
  std::vector<MutableSpan> spans;
  // Runs exactly once, also when the peer dies. On error the spans hold an unknown mixture; in
  // either case nothing is written into them any more.
  std::function<void(absl::Status)> landed;
  // True: there is no room for it now, and nothing else in here counts. The message stays where it
  // is, and Accept is asked again from a later Poll(), unless the peer is lost before; what arrives
  // with the same type waits behind it.
  bool postponed = false;
  // Fills the spans with a payload that has come through the transport's own memory, where the host
  // cannot write them; what it returns is what `landed` gets. Empty: it can.
  std::function<absl::Status(ConstSpan payload)> copy = {};
};

// An arriving message before its payload moves.
struct IncomingMessage {
  PeerId from{};     // Answers go there.
  ConstSpan header;  // Valid only during the callback.
  size_t payload_bytes = 0;
};

class Transport {
 public:
  // Of a header.
  static constexpr size_t kHeaderBytesMax = 1024;

  using Done = std::function<void(absl::Status)>;
  // Called once per arriving message of a type, or more often if it is postponed. Nothing: refused;
  // the payload does not move, and the sender sees its send completed all the same.
  using Accept = std::function<std::optional<Landing>(const IncomingMessage&)>;
  // `peer` is gone: it died, does not answer, or was closed by ForceClose. Runs exactly once for
  // every PeerId that Connect() gave or a message came from. Its sends and receives complete too,
  // before or after this.
  using PeerLost = std::function<void(PeerId peer, const absl::Status& status)>;

  // Closes every connection; what is outstanding completes with kCancelled first.
  virtual ~Transport() = default;

  // What others give to Connect() to reach this one: opaque bytes, constant.
  virtual const std::string& address() const = 0;
  // For logs and metrics: "ucx", "inproc".
  virtual const std::string& name() const = 0;
  // For logs: the kinds of memory that payloads may lie in, "host cuda".
  virtual std::string memory_kinds() const { return "host"; }
  // From now on payloads may lie in these regions of the memory of so many GPUs, each as one span,
  // and in no other memory of a GPU, also not in regions of an earlier call. They stay where they
  // are until then, or until the transport has gone. kUnimplemented: this transport has no way to
  // such memory, or not of several GPUs; any other error: it does not work here. After an error
  // there is no region.
  virtual absl::Status UseDeviceMemory(uint32_t /*devices*/,
                                       std::span<const MutableSpan> /*regions*/) {
    return absl::UnimplementedError("transport '" + name() + "' moves memory of the host only");
  }

  // Takes the messages of `type` from now on; those of a type that nobody takes are refused.
  virtual void OnMessage(MessageType type, Accept accept) = 0;
  virtual void OnPeerLost(PeerLost lost) = 0;

  // The connection to whoever has that address: the one that exists, from either side, or a new
  // one. A new one may turn out to be impossible later, through PeerLost. kInvalidArgument: these
  // bytes are no address. The own address is allowed.
  virtual absl::StatusOr<PeerId> Connect(const std::string& address) = 0;

  // Starts a send. `done` runs exactly once, even if the peer dies or is gone already; the
  // payload's memory stays valid until then. OK: the payload may be reused; the receiver has it or
  // refused it. kUnavailable, kCancelled: the peer may or may not have it. REQUIRES: header.size()
  // <= kHeaderBytesMax.
  virtual void Send(PeerId peer, MessageType type, ConstSpan header, std::vector<ConstSpan> payload,
                    Done done) = 0;

  // Ends the connection at once, without the peer's help: its posted receives and its sends
  // complete, and nothing lands after they have. A peer that is gone already is ignored.
  virtual void ForceClose(PeerId peer) = 0;

  // Moves messages and runs the callbacks that are due. Never blocks. Returns whether there was
  // anything to do, other than to postpone again; if so, there may be more.
  virtual bool Poll() = 0;

  // Readable when Poll() has something to do, provided that Arm() returned true since the last
  // Poll(); -1 if this transport has none.
  virtual int event_fd() const = 0;
  // False: there is work already, call Poll() instead of waiting.
  virtual bool Arm() = 0;
};

// Sum of the sizes.
template <typename Span>
size_t TotalBytes(const std::vector<Span>& spans) {
  size_t total = 0;
  for (const Span& span : spans) total += span.size();
  return total;
}

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_TRANSPORT_H_
