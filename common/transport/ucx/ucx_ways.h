// In which order the ways to a peer are tried, and with which one the next connection begins.
//
// Thread-compatible; a UcxTransport owns them.
#ifndef BATON_COMMON_TRANSPORT_UCX_UCX_WAYS_H_
#define BATON_COMMON_TRANSPORT_UCX_UCX_WAYS_H_

#include <cstddef>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/transport/ucx/ucx_address.h"

namespace baton {

// The ways of one connection, each tried once.
class Ways {
 public:
  Ways() = default;
  Ways(std::vector<SocketAddress> all, size_t first) : all_(std::move(all)), first_(first) {}

  bool more() const { return tried_ < all_.size(); }
  size_t tried() const { return tried_; }
  // REQUIRES: more().
  const SocketAddress& Next() { return all_[Position(tried_++)]; }

 private:
  friend class FirstWays;
  size_t Position(size_t index) const { return (first_ + index) % all_.size(); }

  std::vector<SocketAddress> all_;
  size_t first_ = 0;
  size_t tried_ = 0;
};

// What connections have shown, by address. Whoever waits for one may give up before all ways are
// tried; so the next one goes on from there.
class FirstWays {
 public:
  // Remembers at most so many addresses.
  explicit FirstWays(size_t count_max) : count_max_(count_max) {}

  Ways Begin(const std::string& address, std::vector<SocketAddress> all) const {
    const auto found = first_.find(address);
    return Ways(std::move(all), found != first_.end() ? found->second : 0);
  }
  // The way that was tried last is good, or not.
  void Good(const std::string& address, const Ways& ways) { Note(address, ways, ways.tried() - 1); }
  void Bad(const std::string& address, const Ways& ways) { Note(address, ways, ways.tried()); }

 private:
  void Note(const std::string& address, const Ways& ways, size_t index) {
    if (ways.tried() == 0) return;
    if (first_.size() >= count_max_) first_.clear();
    const size_t first = ways.Position(index);
    if (first == 0) {
      first_.erase(address);
    } else {
      first_[address] = first;
    }
  }

  const size_t count_max_;
  std::unordered_map<std::string, size_t> first_;
};

}  // namespace baton

#endif  // BATON_COMMON_TRANSPORT_UCX_UCX_WAYS_H_
