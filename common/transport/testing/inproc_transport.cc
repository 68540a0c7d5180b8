#include "common/transport/testing/inproc_transport.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace baton {
namespace {

constexpr char kAddressPrefix[] = "inproc:";

class Prompt final : public DeliveryPolicy {
 public:
  uint64_t HeaderDelay(const std::string&, const std::string&) override { return 0; }
  uint64_t PayloadDelay(const std::string&, const std::string&) override { return 0; }
  bool Breaks(const std::string&, const std::string&) override { return false; }
};

void CopyByHost(std::byte* to, const std::byte* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

// Copies bytes [begin, end) of the gathered payload to their place in the scattered one.
void CopyPayload(const std::vector<ConstSpan>& from, const std::vector<MutableSpan>& to,
                 size_t begin, size_t end, const InprocNetwork::CopyBytes& copy) {
  size_t from_index = 0, from_offset = 0, to_index = 0, to_offset = 0, position = 0;
  while (position < end) {
    if (from_offset == from[from_index].size()) {
      ++from_index;
      from_offset = 0;
      continue;
    }
    if (to_offset == to[to_index].size()) {
      ++to_index;
      to_offset = 0;
      continue;
    }
    size_t bytes = std::min(from[from_index].size() - from_offset, to[to_index].size() - to_offset);
    bytes = std::min(bytes, (position < begin ? begin : end) - position);
    if (position >= begin) {
      copy(to[to_index].data() + to_offset, from[from_index].data() + from_offset, bytes);
    }
    position += bytes;
    from_offset += bytes;
    to_offset += bytes;
  }
}

}  // namespace

class InprocTransport;

// One connection. A connection to oneself has one end, used for both directions.
struct InprocLink {
  struct End {
    InprocTransport* transport = nullptr;
    PeerId peer{};       // This end's name for the other end.
    bool named = false;  // The transport knows `peer`.
  };
  End ends[2];
  bool open = true;
};

struct InprocMessage {
  enum class Stage { kHeader, kPayload, kOver };

  std::shared_ptr<InprocLink> link;
  int to_end = 0;
  MessageType type = 0;
  std::vector<std::byte> header;
  std::vector<ConstSpan> payload;
  Transport::Done done;
  Landing landing;
  std::vector<std::byte> arrived;  // An eager payload, in the transport's own memory.
  Stage stage = Stage::kHeader;
  uint64_t due = 0;
  uint64_t sequence = 0;

  size_t half() const { return TotalBytes(payload) / 2; }
};

class InprocNetwork::State {
 public:
  explicit State(std::unique_ptr<DeliveryPolicy> delivery) : policy(std::move(delivery)) {}

  const std::unique_ptr<DeliveryPolicy> policy;
  CopyBytes copy = CopyByHost;
  size_t eager_bytes_max = 0;
  bool takes_device_memory = false;
  std::map<std::string, InprocTransport*> transports;    // By address.
  std::vector<std::shared_ptr<InprocMessage>> messages;  // On their way, oldest first.
  uint64_t step = 0;
  bool polls_are_steps = true;
  uint64_t sequence = 0;
};

class InprocTransport final : public Transport {
 public:
  InprocTransport(InprocNetwork::State* network, std::string address)
      : network_(network), address_(std::move(address)) {
    BATON_CHECK_MSG(network_->transports.emplace(address_, this).second, address_);
  }
  ~InprocTransport() override;

  const std::string& address() const override { return address_; }
  const std::string& name() const override { return name_; }
  absl::Status UseDeviceMemory(uint32_t devices, std::span<const MutableSpan> regions) override {
    return network_->takes_device_memory ? absl::OkStatus()
                                         : Transport::UseDeviceMemory(devices, regions);
  }
  void OnMessage(MessageType type, Accept accept) override { accepts_[type] = std::move(accept); }
  void OnPeerLost(PeerLost lost) override { lost_ = std::move(lost); }
  absl::StatusOr<PeerId> Connect(const std::string& address) override;
  void Send(PeerId peer, MessageType type, ConstSpan header, std::vector<ConstSpan> payload,
            Done done) override;
  void ForceClose(PeerId peer) override;
  bool Poll() override;
  int event_fd() const override { return -1; }
  bool Arm() override { return false; }

 private:
  using LinkEnd = std::pair<std::shared_ptr<InprocLink>, int>;

  PeerId Name(const std::shared_ptr<InprocLink>& link, int end);
  void End(const std::shared_ptr<InprocLink>& link, const absl::Status& here,
           const absl::Status& there);
  void EndMessage(InprocMessage& message, const absl::Status& here, const absl::Status& there);
  bool Deliver(const std::shared_ptr<InprocMessage>& message);
  void Post(InprocMessage& message, Landing landing);
  void Land(const std::shared_ptr<InprocMessage>& message);
  void Leave(const std::shared_ptr<InprocMessage>& message);
  void Later(std::function<void()> callback) { callbacks_.push_back(std::move(callback)); }

  InprocNetwork::State* const network_;
  const std::string address_;
  const std::string name_ = "inproc";
  std::map<MessageType, Accept> accepts_;
  PeerLost lost_;
  std::map<PeerId, LinkEnd> links_;  // Open ones that have a name here.
  std::vector<LinkEnd> unnamed_;     // Open ones from which nothing has come yet.
  uint64_t last_peer_ = 0;
  std::deque<std::function<void()>> callbacks_;
};

InprocTransport::~InprocTransport() {
  lost_ = nullptr;
  const absl::Status here = absl::CancelledError("the transport is closing");
  const absl::Status there = absl::UnavailableError(absl::StrCat(address_, " is gone"));
  while (!links_.empty()) End(links_.begin()->second.first, here, there);
  while (!unnamed_.empty()) End(unnamed_.front().first, here, there);
  network_->transports.erase(address_);
  while (!callbacks_.empty()) {
    const std::function<void()> callback = std::move(callbacks_.front());
    callbacks_.pop_front();
    callback();
  }
}

PeerId InprocTransport::Name(const std::shared_ptr<InprocLink>& link, int end) {
  InprocLink::End& mine = link->ends[end];
  if (!mine.named) {
    mine.named = true;
    mine.peer = PeerId{++last_peer_};
    links_.emplace(mine.peer, LinkEnd{link, end});
    std::erase_if(unnamed_, [&](const LinkEnd& item) { return item.first == link; });
  }
  return mine.peer;
}

absl::StatusOr<PeerId> InprocTransport::Connect(const std::string& address) {
  if (!absl::StartsWith(address, kAddressPrefix)) {
    return absl::InvalidArgumentError("not an inproc address");
  }
  for (const auto& [peer, link_end] : links_) {
    const InprocTransport* other = link_end.first->ends[1 - link_end.second].transport;
    if (other != nullptr && other->address_ == address) return peer;
  }
  for (const LinkEnd& item : unnamed_) {
    if (item.first->ends[1 - item.second].transport->address_ == address) {
      return Name(item.first, item.second);
    }
  }
  auto link = std::make_shared<InprocLink>();
  const auto found = network_->transports.find(address);
  InprocTransport* other = found == network_->transports.end() ? nullptr : found->second;
  link->ends[0].transport = this;
  link->ends[1].transport = other;
  const PeerId peer = Name(link, 0);
  if (other == nullptr) {
    End(link, absl::UnavailableError(absl::StrCat("nobody has the address ", address)), {});
  } else if (other == this) {
    link->ends[1] = link->ends[0];
  } else {
    other->unnamed_.push_back({link, 1});
  }
  return peer;
}

void InprocTransport::Send(PeerId peer, MessageType type, ConstSpan header,
                           std::vector<ConstSpan> payload, Done done) {
  BATON_CHECK(header.size() <= kHeaderBytesMax);
  const auto found = links_.find(peer);
  if (found == links_.end()) {
    Later([done = std::move(done)] { done(absl::UnavailableError("the peer is gone")); });
    return;
  }
  const auto [link, end] = found->second;
  const std::string& to = link->ends[1 - end].transport->address_;
  auto message = std::make_shared<InprocMessage>();
  message->link = link;
  message->to_end = 1 - end;
  message->type = type;
  message->header.assign(header.begin(), header.end());
  message->payload = std::move(payload);
  message->done = std::move(done);
  message->sequence = ++network_->sequence;
  const uint64_t delay = network_->policy->HeaderDelay(address_, to);
  message->due = delay == kNeverDelivered ? kNeverDelivered : network_->step + delay;
  network_->messages.push_back(message);
  if (network_->policy->Breaks(address_, to)) {
    const absl::Status status = absl::UnavailableError("the connection broke");
    End(link, status, status);
  }
}

void InprocTransport::ForceClose(PeerId peer) {
  const auto found = links_.find(peer);
  if (found == links_.end()) return;
  End(found->second.first, absl::CancelledError("the connection was closed by force"),
      absl::UnavailableError(absl::StrCat(address_, " closed the connection")));
}

// Whoever calls this is `here`.
void InprocTransport::End(const std::shared_ptr<InprocLink>& ended, const absl::Status& here,
                          const absl::Status& there) {
  const std::shared_ptr<InprocLink> link = ended;  // `ended` may live in what is erased below.
  link->open = false;
  std::vector<std::shared_ptr<InprocMessage>> mine;
  std::erase_if(network_->messages, [&](const std::shared_ptr<InprocMessage>& message) {
    if (message->link != link) return false;
    mine.push_back(message);
    return true;
  });
  for (const std::shared_ptr<InprocMessage>& message : mine) EndMessage(*message, here, there);
  std::set<InprocTransport*> told;
  for (InprocLink::End& end : link->ends) {
    InprocTransport* transport = end.transport;
    if (transport == nullptr || !told.insert(transport).second) continue;
    std::erase_if(transport->unnamed_, [&](const LinkEnd& item) { return item.first == link; });
    if (!end.named) continue;
    transport->links_.erase(end.peer);
    transport->Later([transport, peer = end.peer, status = transport == this ? here : there] {
      if (transport->lost_) transport->lost_(peer, status);
    });
  }
}

void InprocTransport::EndMessage(InprocMessage& message, const absl::Status& here,
                                 const absl::Status& there) {
  InprocTransport* to = message.link->ends[message.to_end].transport;
  InprocTransport* from = message.link->ends[1 - message.to_end].transport;
  if (message.stage == InprocMessage::Stage::kPayload) {
    to->Later([landed = std::move(message.landing.landed), status = to == this ? here : there] {
      landed(status);
    });
  }
  from->Later(
      [done = std::move(message.done), status = from == this ? here : there] { done(status); });
  message.stage = InprocMessage::Stage::kOver;
}

bool InprocTransport::Poll() {
  if (network_->polls_are_steps) ++network_->step;
  const uint64_t now = network_->step;
  std::vector<std::shared_ptr<InprocMessage>> ready;
  for (const std::shared_ptr<InprocMessage>& message : network_->messages) {
    if (message->due <= now && message->link->ends[message->to_end].transport == this) {
      ready.push_back(message);
    }
  }
  std::sort(ready.begin(), ready.end(), [](const auto& a, const auto& b) {
    return std::pair(a->due, a->sequence) < std::pair(b->due, b->sequence);
  });
  std::deque<std::function<void()>> callbacks;
  callbacks.swap(callbacks_);
  for (const std::function<void()>& callback : callbacks) callback();
  bool any = !callbacks.empty();
  std::set<MessageType> postponed;
  for (const std::shared_ptr<InprocMessage>& message : ready) {
    const bool header = message->stage == InprocMessage::Stage::kHeader;
    if (header && postponed.count(message->type) > 0) continue;
    if (Deliver(message)) {
      any = true;
    } else {
      postponed.insert(message->type);
    }
  }
  return any;
}

// False: the receiver postponed it.
bool InprocTransport::Deliver(const std::shared_ptr<InprocMessage>& message) {
  switch (message->stage) {
    case InprocMessage::Stage::kHeader: {
      const PeerId from = Name(message->link, message->to_end);
      const auto accept = accepts_.find(message->type);
      std::optional<Landing> landing;
      if (accept != accepts_.end()) {
        landing = accept->second({from, message->header, TotalBytes(message->payload)});
      }
      // The callback may have ended the connection, and this message with it.
      if (message->stage == InprocMessage::Stage::kOver) {
        if (landing && !landing->postponed) {
          Later([landed = std::move(landing->landed)] {
            landed(absl::CancelledError("the connection was closed by force"));
          });
        }
        return true;
      }
      if (landing && landing->postponed) return false;
      if (landing) {
        Post(*message, *std::move(landing));
      } else {
        Leave(message);
      }
      return true;
    }
    case InprocMessage::Stage::kPayload:
      Land(message);
      return true;
    case InprocMessage::Stage::kOver:
      return true;
  }
  return true;
}

// The message is over, well or refused: it is the sender's turn.
void InprocTransport::Leave(const std::shared_ptr<InprocMessage>& message) {
  message->stage = InprocMessage::Stage::kOver;
  std::erase(network_->messages, message);
  InprocTransport* sender = message->link->ends[1 - message->to_end].transport;
  sender->Later([done = std::move(message->done)] { done(absl::OkStatus()); });
}

void InprocTransport::Post(InprocMessage& message, Landing landing) {
  const size_t payload_bytes = TotalBytes(message.payload);
  BATON_CHECK(TotalBytes(landing.spans) == payload_bytes);
  message.landing = std::move(landing);
  message.stage = InprocMessage::Stage::kPayload;
  if (payload_bytes <= network_->eager_bytes_max) {
    message.arrived.resize(payload_bytes);
    CopyPayload(message.payload, {message.arrived}, 0, payload_bytes, network_->copy);
  } else {
    CopyPayload(message.payload, message.landing.spans, 0, message.half(), network_->copy);
  }
  const uint64_t delay = network_->policy->PayloadDelay(
      message.link->ends[1 - message.to_end].transport->address_, address_);
  message.due = delay == kNeverDelivered ? kNeverDelivered : network_->step + delay;
}

void InprocTransport::Land(const std::shared_ptr<InprocMessage>& message) {
  const size_t payload_bytes = TotalBytes(message->payload);
  const bool eager = !message->arrived.empty();
  if (!eager) {
    CopyPayload(message->payload, message->landing.spans, message->half(), payload_bytes,
                network_->copy);
  }
  const InprocTransport* from = message->link->ends[1 - message->to_end].transport;
  if (payload_bytes > 0 && network_->policy->Corrupts(from->address_, address_)) {
    const auto& spans = message->landing.spans;
    std::byte* const victim = eager ? message->arrived.data()
                                    : std::find_if(spans.begin(), spans.end(), [](MutableSpan s) {
                                        return !s.empty();
                                      })->data();
    std::byte byte{};
    network_->copy(&byte, victim, 1);
    byte ^= std::byte{1};
    network_->copy(victim, &byte, 1);
  }
  const Landing landing = std::move(message->landing);
  const std::vector<std::byte> arrived = std::move(message->arrived);
  Leave(message);  // Before the callback, which may end the connection.
  absl::Status status;
  if (eager && landing.copy) {
    status = landing.copy(arrived);
  } else if (eager) {
    CopyPayload({arrived}, landing.spans, 0, arrived.size(), CopyByHost);
  }
  landing.landed(status);
}

InprocNetwork::InprocNetwork() : InprocNetwork(std::make_unique<Prompt>()) {}
InprocNetwork::InprocNetwork(std::unique_ptr<DeliveryPolicy> policy)
    : state_(std::make_unique<State>(std::move(policy))) {}
InprocNetwork::~InprocNetwork() { BATON_CHECK(state_->transports.empty()); }

void InprocNetwork::CopyWith(CopyBytes copy, size_t eager_bytes_max) {
  state_->copy = std::move(copy);
  state_->eager_bytes_max = eager_bytes_max;
  state_->takes_device_memory = true;
}

void InprocNetwork::AdvanceTo(uint64_t step) {
  BATON_CHECK(step >= state_->step);
  state_->polls_are_steps = false;
  state_->step = step;
}

std::unique_ptr<Transport> InprocNetwork::Open(const std::string& name) {
  return std::make_unique<InprocTransport>(state_.get(), absl::StrCat(kAddressPrefix, name));
}

}  // namespace baton
