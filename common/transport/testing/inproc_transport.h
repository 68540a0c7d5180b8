// A transport between objects of one process and one thread: for tests and simulation.
//
// Deterministic: what happens depends only on the calls and on the DeliveryPolicy. Time is counted
// in steps; every Poll() of any transport of the network is one, unless AdvanceTo is used.
#ifndef BATON_COMMON_TRANSPORT_TESTING_INPROC_TRANSPORT_H_
#define BATON_COMMON_TRANSPORT_TESTING_INPROC_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include "common/transport/transport.h"

namespace baton {

inline constexpr uint64_t kNeverDelivered = std::numeric_limits<uint64_t>::max();

// How long each stage of a message takes, in steps; 0 is the receiver's next Poll(), in the order
// of sending. kNeverDelivered: not before the connection ends.
class DeliveryPolicy {
 public:
  virtual ~DeliveryPolicy() = default;
  virtual uint64_t HeaderDelay(const std::string& from, const std::string& to) = 0;
  // The payload's first half is written when it is posted, the rest after this delay.
  virtual uint64_t PayloadDelay(const std::string& from, const std::string& to) = 0;
  // True: the connection breaks instead of taking this message.
  virtual bool Breaks(const std::string& from, const std::string& to) = 0;
  // True: one byte of this payload arrives wrong.
  virtual bool Corrupts(const std::string& /*from*/, const std::string& /*to*/) { return false; }
};

class InprocNetwork {
 public:
  // Everything at once and in order.
  InprocNetwork();
  explicit InprocNetwork(std::unique_ptr<DeliveryPolicy> policy);
  // REQUIRES: its transports are gone.
  ~InprocNetwork();

  // `name` is the transport's address. REQUIRES: not in use now.
  std::unique_ptr<Transport> Open(const std::string& name);

  // Copies payloads so, instead of by memcpy, which lets them lie in memory that the host cannot
  // touch: UseDeviceMemory then succeeds. Those of at most `eager_bytes_max` come through the
  // transport's own memory.
  using CopyBytes = std::function<void(std::byte* to, const std::byte* from, size_t bytes)>;
  void CopyWith(CopyBytes copy, size_t eager_bytes_max);

  // From now on only this moves time on. REQUIRES: `step` is not before the current one.
  void AdvanceTo(uint64_t step);

 private:
  friend class InprocTransport;
  class State;
  const std::unique_ptr<State> state_;
};

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_TESTING_INPROC_TRANSPORT_H_
