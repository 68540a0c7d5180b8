#include "common/transport/ucx/ucx_transport.h"

#include <ucp/api/ucp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/secure_random.h"
#include "common/base/status_macros.h"
#include "common/transport/ucx/ucx_address.h"
#include "common/transport/ucx/ucx_handles.h"
#include "common/transport/ucx/ucx_ways.h"
#include "common/transport/ucx/ucx_wire.h"

namespace baton {
namespace {

// UCX's ids of active messages.
constexpr unsigned kGreetingId = 0;
constexpr unsigned kMessageId = 1;
// One Poll() makes UCX progress at most so often before it runs callbacks.
constexpr int kProgressMax = 64;
// How long connections that are coming up may take to show, before they are closed.
constexpr Duration kSettleTime = std::chrono::milliseconds(20);
// Bounds the wait for completions when the transport is destroyed.
constexpr int kFinalProgressMax = 1 << 20;

// A payload from UCX's memory to where it lands.
absl::Status Copy(ConstSpan payload, const Landing& landing) {
  if (landing.copy) return landing.copy(payload);
  const std::byte* from = payload.data();
  for (const MutableSpan& span : landing.spans) {
    if (span.empty()) continue;
    std::memcpy(span.data(), from, span.size());
    from += span.size();
  }
  return absl::OkStatus();
}

class UcxTransport final : public Transport {
 public:
  UcxTransport(const UcxTransportOptions& options, std::unique_ptr<UcxWorker> worker)
      : options_(options),
        worker_(std::move(worker)),
        identity_(SecureRandom()),
        machine_(LocalMachine()) {}
  ~UcxTransport() override;

  // Registers the message handlers and listens.
  absl::Status Start();

  const std::string& address() const override { return address_; }
  const std::string& name() const override { return name_; }
  std::string memory_kinds() const override { return worker_->memory_kinds(); }
  absl::Status UseDeviceMemory(uint32_t devices, std::span<const MutableSpan> regions) override {
    return worker_->UseCudaMemory(devices, regions);
  }
  void OnMessage(MessageType type, Accept accept) override { accepts_[type] = std::move(accept); }
  void OnPeerLost(PeerLost lost) override { lost_ = std::move(lost); }
  absl::StatusOr<PeerId> Connect(const std::string& address) override;
  void Send(PeerId peer, MessageType type, ConstSpan header, std::vector<ConstSpan> payload,
            Done done) override;
  void ForceClose(PeerId peer) override {
    Lose(peer, absl::CancelledError("the connection was closed by force"));
  }
  bool Poll() override;
  int event_fd() const override { return worker_->event_fd(); }
  bool Arm() override;

 private:
  // A send or a posted receive under way; UCX reads its members until it completes.
  struct Operation {
    UcxTransport* owner = nullptr;
    std::vector<ucp_dt_iov_t> iov;
    std::string header;
    Done done;
    ucs_status_t status = UCS_OK;
  };
  struct WaitingSend {
    std::string header;
    std::vector<ConstSpan> payload;
    Done done;
  };
  struct Peer {
    UcxEndpoint endpoint;
    std::string address;  // Empty while a peer that connected has not said hello.
    uint64_t identity = 0;
    Ways ways;           // None to a peer that connected to us.
    bool open = false;   // The greeting is over.
    bool named = false;  // The layer above knows the peer.
    std::deque<WaitingSend> waiting;
  };
  // Whose endpoint UCX speaks of, and which of its endpoints. Found out at once: the endpoint may
  // be gone, and its address taken by another one, when Poll() looks at it.
  struct Source {
    PeerId peer{};
    size_t ways_tried = 0;
  };
  // A message that UCX has delivered and Poll() has yet to look at.
  struct Arrival {
    unsigned id = 0;
    Source source;
    std::string header;
    void* held = nullptr;  // UCX's descriptor of the payload.
    bool rendezvous = false;
    std::vector<std::byte> copied;  // The payload, if UCX would not hold it.
    size_t payload_bytes = 0;
  };

  template <unsigned kId>
  static ucs_status_t OnArrival(void* argument, const void* header, size_t header_bytes, void* data,
                                size_t bytes, const ucp_am_recv_param_t* param);
  static void OnWanted(ucp_conn_request_h request, void* argument) {
    static_cast<UcxTransport*>(argument)->wanted_.push_back(request);
  }
  static void OnSent(void* request, ucs_status_t status, void* operation) {
    OnCompleted(request, status, operation);
  }
  static void OnReceived(void* request, ucs_status_t status, size_t /*bytes*/, void* operation) {
    OnCompleted(request, status, operation);
  }
  static void OnCompleted(void* request, ucs_status_t status, void* argument);
  static void OnFailed(void* argument, ucp_ep_h endpoint, ucs_status_t status);

  PeerId AddPeer(UcxEndpoint endpoint);
  Peer* Find(PeerId peer);
  Source SourceOf(ucp_ep_h endpoint);
  // nullptr when it speaks of an endpoint that the peer has no more.
  Peer* Find(const Source& source);
  void Lose(PeerId peer, const absl::Status& status);
  void TryNextWay(PeerId peer, const absl::Status& status);
  void BeginTrial(PeerId id, const Peer& peer);
  absl::StatusOr<UcxEndpoint> ConnectBy(Ways& ways);
  void AcceptPeer(ucp_conn_request_h request);
  void CloseLater(UcxEndpoint endpoint) {
    closing_endpoints_.push_back({std::move(endpoint), Now() + kSettleTime});
  }
  void Greet(const Peer& peer, Greeting::Kind kind);
  void Submit(const Peer& peer, unsigned id, WaitingSend send);
  void Opened(PeerId peer);
  Operation* NewOperation(Done done);
  void Later(std::function<void()> callback) { callbacks_.push_back(std::move(callback)); }

  bool RunDue();
  void EndTrials();
  void Complete(Operation* operation);
  void TakeGreeting(const Arrival& arrival);
  void TakeHello(PeerId peer, const Greeting& greeting, const Arrival& arrival);
  void TakeMessage(Arrival arrival);
  bool Offer(const Arrival& arrival);
  bool OfferPostponed();
  void Post(const Arrival& arrival, Landing landing);
  struct Buffer {
    void* data = nullptr;
    size_t count = 0;
  };
  Buffer DescribeMemory(Operation* operation, ucp_request_param_t* param) const;
  void Release(const Arrival& arrival);

  const UcxTransportOptions options_;
  std::unique_ptr<UcxWorker> worker_;
  std::unique_ptr<UcxListener> listener_;
  bool closing_ = false;
  const uint64_t identity_;
  const uint64_t machine_;
  std::string address_;  // Constant once started.
  const std::string name_ = "ucx";

  std::array<Accept, 256> accepts_;  // By message type.
  PeerLost lost_;
  uint64_t last_peer_ = 0;
  std::map<PeerId, Peer> peers_;
  std::unordered_map<ucp_ep_h, PeerId> by_endpoint_;
  std::unordered_map<std::string, PeerId> by_address_;
  FirstWays first_ways_{options_.peers_max};
  std::unordered_map<Operation*, std::unique_ptr<Operation>> operations_;
  // UCX 1.13 does not bear that a connection is closed while it is coming up. Nothing but a
  // greeting can come over one: it may as well be closed a little later.
  struct ClosingEndpoint {
    UcxEndpoint endpoint;
    Instant close_at;
  };
  std::deque<ClosingEndpoint> closing_endpoints_;
  // Connections that are to come up, oldest first: a way that swallows everything does not fail.
  struct Trial {
    Source source;
    Instant until;
  };
  std::deque<Trial> trials_;

  // Filled from inside UCX, emptied by Poll().
  std::vector<Arrival> arrivals_;
  std::vector<Operation*> completed_;
  std::vector<std::pair<Source, ucs_status_t>> failed_;
  std::vector<ucp_conn_request_h> wanted_;
  std::vector<std::function<void()>> callbacks_;

  // Messages that the layer above had no room for.
  std::map<MessageType, std::deque<Arrival>> postponed_;
};

UcxTransport::~UcxTransport() {
  lost_ = nullptr;
  const absl::Status closing = absl::CancelledError("the transport is closing");
  accepts_ = {};
  closing_ = true;
  while (!peers_.empty()) Lose(peers_.begin()->first, closing);
  for (int i = 0; i < kFinalProgressMax && !operations_.empty(); ++i) Poll();
  const Instant settled = Now() + kSettleTime;
  while (Now() < settled || !closing_endpoints_.empty()) Poll();
  for (const Arrival& arrival : std::exchange(arrivals_, {})) Release(arrival);
  for (const auto& [type, waiting] : std::exchange(postponed_, {})) {
    for (const Arrival& arrival : waiting) Release(arrival);
  }
  for (ucp_conn_request_h request : std::exchange(wanted_, {})) listener_->Reject(request);
  // Next to each other: UCX 1.13's own thread hands a connection that is still coming up to its
  // listener, even to one that is gone. The worker's end stops that thread's part in it.
  listener_.reset();
  worker_.reset();
  // UCX reads and writes nothing any more for what it has not completed so far.
  for (auto& [unused, operation] : std::exchange(operations_, {})) operation->done(closing);
  for (const std::function<void()>& callback : std::exchange(callbacks_, {})) callback();
}

absl::Status UcxTransport::Start() {
  for (const unsigned id : {kGreetingId, kMessageId}) {
    ucp_am_handler_param_t param = {};
    param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    param.id = id;
    param.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
    param.cb = id == kGreetingId ? OnArrival<kGreetingId> : OnArrival<kMessageId>;
    param.arg = this;
    BATON_RETURN_IF_ERROR(UcxStatus(ucp_worker_set_am_recv_handler(worker_->get(), &param),
                                    "registering a message handler"));
  }
  UcxAddress own;
  if (options_.listen_host.empty()) {
    for (const LocalNetwork& network : LocalNetworks()) own.hosts.push_back(network.host);
    if (own.hosts.empty()) return absl::UnavailableError("this machine has no IPv4 address");
    own.hosts.resize(std::min(own.hosts.size(), UcxAddress::kHostsMax));
  } else {
    own.hosts = {options_.listen_host};
  }
  const std::string host = options_.listen_host.empty() ? "0.0.0.0" : options_.listen_host;
  BATON_ASSIGN_OR_RETURN(const SocketAddress any_port, MakeSocketAddress(host, 0));
  BATON_ASSIGN_OR_RETURN(listener_, UcxListener::Create(*worker_, any_port, OnWanted, this));
  own.identity = identity_;
  own.machine = machine_;
  own.port = listener_->port();
  address_ = EncodeUcxAddress(own);
  return absl::OkStatus();
}

// --- Inside UCX: nothing but notes for Poll() ----------------------------------------------------

template <unsigned kId>
ucs_status_t UcxTransport::OnArrival(void* argument, const void* header, size_t header_bytes,
                                     void* data, size_t bytes, const ucp_am_recv_param_t* param) {
  auto* self = static_cast<UcxTransport*>(argument);
  Arrival arrival;
  arrival.id = kId;
  if (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) {
    arrival.source = self->SourceOf(param->reply_ep);
  }
  if (header_bytes > 0) arrival.header.assign(static_cast<const char*>(header), header_bytes);
  arrival.payload_bytes = bytes;
  arrival.rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  if (arrival.rendezvous || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_DATA) != 0) {
    arrival.held = data;
  } else if (bytes > 0) {
    const auto* from = static_cast<const std::byte*>(data);
    arrival.copied.assign(from, from + bytes);
  }
  const bool held = arrival.held != nullptr;
  self->arrivals_.push_back(std::move(arrival));
  return held ? UCS_INPROGRESS : UCS_OK;
}

void UcxTransport::OnCompleted(void* request, ucs_status_t status, void* argument) {
  auto* operation = static_cast<Operation*>(argument);
  operation->status = status;
  operation->owner->completed_.push_back(operation);
  ucp_request_free(request);
}

void UcxTransport::OnFailed(void* argument, ucp_ep_h endpoint, ucs_status_t status) {
  auto* self = static_cast<UcxTransport*>(argument);
  self->failed_.push_back({self->SourceOf(endpoint), status});
}

// --- Connections ---------------------------------------------------------------------------------

UcxTransport::Peer* UcxTransport::Find(PeerId peer) {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : &found->second;
}

UcxTransport::Source UcxTransport::SourceOf(ucp_ep_h endpoint) {
  const auto known = by_endpoint_.find(endpoint);
  if (known == by_endpoint_.end()) return {};
  return {known->second, Find(known->second)->ways.tried()};
}

UcxTransport::Peer* UcxTransport::Find(const Source& source) {
  Peer* peer = Find(source.peer);
  return peer != nullptr && peer->ways.tried() == source.ways_tried ? peer : nullptr;
}

PeerId UcxTransport::AddPeer(UcxEndpoint endpoint) {
  const PeerId id{++last_peer_};
  by_endpoint_[endpoint.get()] = id;
  peers_.emplace(id,
                 Peer{.endpoint = std::move(endpoint), .address = {}, .ways = {}, .waiting = {}});
  return id;
}

absl::StatusOr<PeerId> UcxTransport::Connect(const std::string& address) {
  if (const auto found = by_address_.find(address); found != by_address_.end()) {
    Find(found->second)->named = true;
    return found->second;
  }
  BATON_ASSIGN_OR_RETURN(const UcxAddress to, DecodeUcxAddress(address));
  if (peers_.size() >= options_.peers_max) {
    return absl::ResourceExhaustedError(absl::StrCat(peers_.size(), " connections are open"));
  }
  std::vector<SocketAddress> all = WaysTo(to, machine_, LocalNetworks());
  if (all.empty()) return absl::UnavailableError("no way leads to that address");
  Ways ways = first_ways_.Begin(address, std::move(all));
  BATON_ASSIGN_OR_RETURN(UcxEndpoint endpoint, ConnectBy(ways));
  const PeerId id = AddPeer(std::move(endpoint));
  by_address_[address] = id;
  Peer& peer = *Find(id);
  peer.named = true;
  peer.address = address;
  peer.identity = to.identity;
  peer.ways = std::move(ways);
  BeginTrial(id, peer);
  return id;
}

// Over the next way that has a route. REQUIRES: there are more.
absl::StatusOr<UcxEndpoint> UcxTransport::ConnectBy(Ways& ways) {
  while (true) {
    absl::StatusOr<UcxEndpoint> endpoint =
        UcxEndpoint::Connect(*worker_, ways.Next(), OnFailed, this);
    if (endpoint.ok() || !ways.more()) return endpoint;
  }
}

void UcxTransport::BeginTrial(PeerId id, const Peer& peer) {
  if (peer.ways.more()) {
    trials_.push_back({{id, peer.ways.tried()}, Now() + options_.connect_time});
  }
  Greet(peer, Greeting::Kind::kHello);
}

void UcxTransport::AcceptPeer(ucp_conn_request_h request) {
  if (closing_ || peers_.size() >= options_.peers_max) return listener_->Reject(request);
  absl::StatusOr<UcxEndpoint> endpoint = UcxEndpoint::Accept(*worker_, request, OnFailed, this);
  // An error says that the requester is gone already.
  if (endpoint.ok()) AddPeer(*std::move(endpoint));
}

void UcxTransport::Greet(const Peer& peer, Greeting::Kind kind) {
  WaitingSend send;
  send.header = EncodeGreeting({kind, peer.identity});
  if (kind == Greeting::Kind::kHello) send.payload = {std::as_bytes(std::span(address_))};
  // A greeting that does not arrive shows as a lost peer.
  send.done = [](const absl::Status&) {};
  Submit(peer, kGreetingId, std::move(send));
}

void UcxTransport::TakeGreeting(const Arrival& arrival) {
  const std::optional<Greeting> greeting = DecodeGreeting(std::as_bytes(std::span(arrival.header)));
  if (!greeting || arrival.rendezvous || Find(arrival.source) == nullptr) return;
  const PeerId peer = arrival.source.peer;
  switch (greeting->kind) {
    case Greeting::Kind::kHello:
      return TakeHello(peer, *greeting, arrival);
    case Greeting::Kind::kWelcome:
      return Opened(peer);
    case Greeting::Kind::kWrongDoor:
      return TryNextWay(peer, absl::UnavailableError("somebody else answers at the address"));
  }
}

void UcxTransport::TakeHello(PeerId id, const Greeting& greeting, const Arrival& arrival) {
  const char* bytes = arrival.held != nullptr
                          ? static_cast<const char*>(arrival.held)
                          : reinterpret_cast<const char*>(arrival.copied.data());
  std::string address(bytes, arrival.payload_bytes);
  const absl::StatusOr<UcxAddress> from = DecodeUcxAddress(address);
  Peer& peer = *Find(id);
  if (!from.ok() || !peer.address.empty()) {
    return Lose(id, absl::UnavailableError("the peer does not keep to the protocol"));
  }
  peer.identity = from->identity;
  if (greeting.to_identity != identity_) {
    return Greet(peer, Greeting::Kind::kWrongDoor);  // Whoever it is will close the connection.
  }
  by_address_.emplace(address, id);
  peer.address = std::move(address);
  Greet(peer, Greeting::Kind::kWelcome);
  Opened(id);
}

void UcxTransport::Opened(PeerId id) {
  Peer& peer = *Find(id);
  peer.open = true;
  first_ways_.Good(peer.address, peer.ways);
  std::deque<WaitingSend> waiting;
  waiting.swap(peer.waiting);
  for (WaitingSend& send : waiting) Submit(peer, kMessageId, std::move(send));
}

// The connection failed, or takes too long: over another way it may work, unless it had come up.
void UcxTransport::TryNextWay(PeerId id, const absl::Status& status) {
  Peer* peer = Find(id);
  if (peer == nullptr) return;
  if (!peer->open && peer->ways.more()) {
    absl::StatusOr<UcxEndpoint> endpoint = ConnectBy(peer->ways);
    if (endpoint.ok()) {
      by_endpoint_.erase(peer->endpoint.get());
      CloseLater(std::exchange(peer->endpoint, *std::move(endpoint)));
      by_endpoint_[peer->endpoint.get()] = id;
      return BeginTrial(id, *peer);
    }
  }
  Lose(id, status);
}

void UcxTransport::Lose(PeerId id, const absl::Status& status) {
  Peer* peer = Find(id);
  if (peer == nullptr) return;
  for (WaitingSend& send : peer->waiting) {
    Later([done = std::move(send.done), status] { done(status); });
  }
  if (peer->named) {
    Later([this, id, status] {
      if (lost_) lost_(id, status);
    });
  }
  by_endpoint_.erase(peer->endpoint.get());
  if (const auto found = by_address_.find(peer->address);
      found != by_address_.end() && found->second == id) {
    by_address_.erase(found);
  }
  if (!peer->open) {
    first_ways_.Bad(peer->address, peer->ways);
    CloseLater(std::move(peer->endpoint));
  }
  peers_.erase(id);  // Closes the endpoint by force.
}

// --- Sending -------------------------------------------------------------------------------------

UcxTransport::Operation* UcxTransport::NewOperation(Done done) {
  auto operation = std::make_unique<Operation>();
  operation->owner = this;
  operation->done = std::move(done);
  Operation* result = operation.get();
  operations_.emplace(result, std::move(operation));
  return result;
}

void UcxTransport::Send(PeerId id, MessageType type, ConstSpan header,
                        std::vector<ConstSpan> payload, Done done) {
  BATON_CHECK(header.size() <= kHeaderBytesMax);
  Peer* peer = Find(id);
  if (peer == nullptr) {
    Later([done = std::move(done)] { done(absl::UnavailableError("the peer is gone")); });
    return;
  }
  WaitingSend send;
  send.header.push_back(static_cast<char>(type));
  send.header.append(reinterpret_cast<const char*>(header.data()), header.size());
  send.payload = std::move(payload);
  send.done = std::move(done);
  if (peer->open) {
    Submit(*peer, kMessageId, std::move(send));
  } else if (peer->waiting.size() < options_.waiting_sends_max) {
    peer->waiting.push_back(std::move(send));
  } else {
    Later([done = std::move(send.done)] {
      done(absl::ResourceExhaustedError("too many sends wait for the connection"));
    });
  }
}

void UcxTransport::Submit(const Peer& peer, unsigned id, WaitingSend send) {
  Operation* operation = NewOperation(std::move(send.done));
  operation->header = std::move(send.header);
  size_t bytes = 0;
  for (const ConstSpan& span : send.payload) {
    if (span.empty()) continue;
    operation->iov.push_back({const_cast<std::byte*>(span.data()), span.size()});
    bytes += span.size();
  }
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_DATATYPE;
  param.cb.send = OnSent;
  param.user_data = operation;
  const bool eager = id == kGreetingId || bytes <= options_.eager_bytes_max;
  param.flags = UCP_AM_SEND_FLAG_REPLY | (eager ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV);
  const Buffer buffer = DescribeMemory(operation, &param);
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(peer.endpoint.get(), id, operation->header.data(), operation->header.size(),
                      buffer.data, buffer.count, &param);
  if (UCS_PTR_IS_PTR(request)) return;
  operation->status = UCS_PTR_STATUS(request);
  completed_.push_back(operation);
}

// --- Receiving -----------------------------------------------------------------------------------

void UcxTransport::TakeMessage(Arrival arrival) {
  if (Find(arrival.source) == nullptr || arrival.header.empty()) return Release(arrival);
  const auto type = static_cast<MessageType>(arrival.header[0]);
  const auto waiting = postponed_.find(type);
  if (waiting != postponed_.end()) {
    waiting->second.push_back(std::move(arrival));
  } else if (!Offer(arrival)) {
    postponed_[type].push_back(std::move(arrival));
  }
}

// In order; returns whether any is postponed no more.
bool UcxTransport::OfferPostponed() {
  bool any = false;
  for (auto next = postponed_.begin(); next != postponed_.end();) {
    std::deque<Arrival>& waiting = next->second;
    while (!waiting.empty() && Offer(waiting.front())) {
      waiting.pop_front();
      any = true;
    }
    next = waiting.empty() ? postponed_.erase(next) : std::next(next);
  }
  return any;
}

// False: the layer above has no room for it now.
bool UcxTransport::Offer(const Arrival& arrival) {
  const PeerId from = arrival.source.peer;
  const auto type = static_cast<MessageType>(arrival.header[0]);
  Peer* const peer = Find(from);
  if (peer == nullptr || !accepts_[type]) {
    Release(arrival);
    return true;
  }
  peer->named = true;
  std::optional<Landing> landing = accepts_[type](
      {from, std::as_bytes(std::span(arrival.header).subspan(1)), arrival.payload_bytes});
  if (!landing) {
    Release(arrival);
    return true;
  }
  if (landing->postponed) return false;
  BATON_CHECK(TotalBytes(landing->spans) == arrival.payload_bytes);
  if (Find(from) == nullptr) {  // The callback closed the connection.
    Release(arrival);
    Later([landed = std::move(landing->landed)] {
      landed(absl::CancelledError("the connection was closed by force"));
    });
    return true;
  }
  if (arrival.rendezvous && arrival.payload_bytes > 0) {
    Post(arrival, *std::move(landing));
    return true;
  }
  const std::byte* const bytes =
      arrival.held != nullptr ? static_cast<const std::byte*>(arrival.held) : arrival.copied.data();
  const absl::Status copied = Copy({bytes, arrival.payload_bytes}, *landing);
  Release(arrival);
  landing->landed(copied);
  return true;
}

void UcxTransport::Post(const Arrival& arrival, Landing landing) {
  Operation* operation = NewOperation(std::move(landing.landed));
  for (const MutableSpan& span : landing.spans) {
    if (!span.empty()) operation->iov.push_back({span.data(), span.size()});
  }
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_DATATYPE;
  param.cb.recv_am = OnReceived;
  param.user_data = operation;
  const Buffer buffer = DescribeMemory(operation, &param);
  const ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_->get(), arrival.held, buffer.data, buffer.count, &param);
  if (UCS_PTR_IS_PTR(request)) return;
  operation->status = UCS_PTR_STATUS(request);
  completed_.push_back(operation);
}

// What UCX is to read or write for the operation.
UcxTransport::Buffer UcxTransport::DescribeMemory(Operation* operation,
                                                  ucp_request_param_t* param) const {
  std::vector<ucp_dt_iov_t>& iov = operation->iov;
  Buffer buffer;
  if (iov.size() == 1) buffer = {iov[0].buffer, iov[0].length};
  if (iov.size() > 1) buffer = {iov.data(), iov.size()};
  param->datatype = iov.size() > 1 ? ucp_dt_make_iov() : ucp_dt_make_contig(1);
  // Otherwise UCX would look where the address lies, and register it.
  if (const ucp_mem_h memory = worker_->CudaMemoryAt(buffer.data)) {
    param->op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FIELD_MEMH;
    param->memory_type = UCS_MEMORY_TYPE_CUDA;
    param->memh = memory;
  }
  return buffer;
}

// Gives an unwanted payload back; its sender's send completes.
void UcxTransport::Release(const Arrival& arrival) {
  if (arrival.held != nullptr) ucp_am_data_release(worker_->get(), arrival.held);
}

// --- Progress ------------------------------------------------------------------------------------

bool UcxTransport::Poll() {
  bool any = false;
  for (int i = 0; i < kProgressMax && ucp_worker_progress(worker_->get()) != 0; ++i) any = true;
  return RunDue() || any;
}

void UcxTransport::EndTrials() {
  while (!trials_.empty() && trials_.front().until <= Now()) {
    const Source source = trials_.front().source;
    trials_.pop_front();
    const Peer* peer = Find(source);
    if (peer == nullptr || peer->open) continue;
    TryNextWay(source.peer, absl::UnavailableError("no way to the peer comes up"));
  }
}

bool UcxTransport::RunDue() {
  while (!closing_endpoints_.empty() && closing_endpoints_.front().close_at <= Now()) {
    closing_endpoints_.pop_front();
  }
  const auto failed = std::exchange(failed_, {});
  const auto wanted = std::exchange(wanted_, {});
  auto arrivals = std::exchange(arrivals_, {});
  const auto completed = std::exchange(completed_, {});
  const auto callbacks = std::exchange(callbacks_, {});
  for (ucp_conn_request_h request : wanted) AcceptPeer(request);
  const bool offered = OfferPostponed();
  for (Arrival& arrival : arrivals) {
    if (arrival.id == kGreetingId) {
      TakeGreeting(arrival);
      Release(arrival);
    } else {
      TakeMessage(std::move(arrival));
    }
  }
  EndTrials();  // A welcome that has arrived counts.
  for (Operation* operation : completed) Complete(operation);
  // After the arrivals: what a peer said before it died still counts.
  for (const auto& [source, status] : failed) {
    if (Find(source) == nullptr) continue;
    TryNextWay(source.peer, UcxStatus(status, "the peer is lost"));
  }
  for (const std::function<void()>& callback : callbacks) callback();
  return !wanted.empty() || !failed.empty() || !arrivals.empty() || !completed.empty() ||
         !callbacks.empty() || offered;
}

void UcxTransport::Complete(Operation* operation) {
  const auto node = operations_.extract(operation);
  BATON_CHECK(!node.empty());
  node.mapped()->done(UcxStatus(operation->status, "the transfer ended"));
}

bool UcxTransport::Arm() {
  if (!wanted_.empty() || !failed_.empty() || !arrivals_.empty() || !completed_.empty() ||
      !callbacks_.empty()) {
    return false;
  }
  return ucp_worker_arm(worker_->get()) == UCS_OK;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> OpenUcxTransport(const UcxTransportOptions& options) {
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker, UcxWorker::Create());
  auto transport = std::make_unique<UcxTransport>(options, std::move(worker));
  BATON_RETURN_IF_ERROR(transport->Start());
  return transport;
}

}  // namespace baton
