// Drives transports from a test until something has happened: no sleeps, a bound on the wait.
#ifndef BATON_COMMON_TRANSPORT_TESTING_POLLING_H_
#define BATON_COMMON_TRANSPORT_TESTING_POLLING_H_

#include <poll.h>

#include <functional>
#include <vector>

#include "common/base/clock.h"
#include "common/transport/transport.h"

namespace baton {

// Polls all until `happened`, and returns whether it did within the bound. Between polls it waits
// for the transports' event descriptors; transports without one are polled again at once.
inline bool PollUntil(const std::vector<Transport*>& transports,
                      const std::function<bool()>& happened,
                      Duration bound = std::chrono::seconds(20)) {
  constexpr int kIdlePollsMax = 2000;  // Of transports that have no descriptor.
  const Instant deadline = Now() + bound;
  int idle_polls = 0;
  while (!happened()) {
    if (Now() > deadline) return false;
    bool any = false;
    for (Transport* transport : transports) any = transport->Poll() || any;
    if (any) {
      idle_polls = 0;
      continue;
    }
    std::vector<pollfd> descriptors;
    for (Transport* transport : transports) {
      if (transport->event_fd() < 0 || !transport->Arm()) continue;
      descriptors.push_back({transport->event_fd(), POLLIN, 0});
    }
    if (descriptors.size() == transports.size()) {
      poll(descriptors.data(), descriptors.size(), /*timeout_ms=*/20);
    } else if (++idle_polls > kIdlePollsMax) {
      return happened();
    }
  }
  return true;
}

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_TESTING_POLLING_H_
