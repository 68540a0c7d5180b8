// The promises of transport.h, checked for every implementation and both ways of moving a payload.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/transport/testing/inproc_transport.h"
#include "common/transport/testing/polling.h"
#include "common/transport/transport.h"
#include "common/transport/ucx/ucx_transport.h"

namespace baton {
namespace {

using Bytes = std::vector<std::byte>;

enum class Kind { kInproc, kUcxRendezvous, kUcxEager };

// An inproc network whose payloads stand still while `hung`.
class HangingDelivery final : public DeliveryPolicy {
 public:
  explicit HangingDelivery(const bool* hung) : hung_(hung) {}
  uint64_t HeaderDelay(const std::string&, const std::string&) override { return 0; }
  uint64_t PayloadDelay(const std::string&, const std::string&) override {
    return *hung_ ? kNeverDelivered : 0;
  }
  bool Breaks(const std::string&, const std::string&) override { return false; }

 private:
  const bool* const hung_;
};

class TransportContractTest : public testing::TestWithParam<Kind> {
 protected:
  static constexpr MessageType kType = 7;
  static constexpr MessageType kOtherType = 8;

  std::unique_ptr<Transport> Open() {
    if (GetParam() == Kind::kInproc) return network_.Open(std::to_string(++opened_));
    UcxTransportOptions options;
    options.eager_bytes_max = GetParam() == Kind::kUcxEager ? size_t{1} << 30 : 0;
    return OpenUcxTransport(options).value();
  }

  // Every message of kType lands in a buffer of its own; headers and payloads are noted.
  struct Inbox {
    std::vector<std::string> headers;
    std::vector<PeerId> from;
    std::map<std::string, Bytes> payloads;  // By header, once landed.
    std::vector<absl::Status> landed;
    size_t posted = 0;
  };
  static void TakeAll(Transport& transport, Inbox& inbox, MessageType type = kType) {
    transport.OnMessage(type, [&inbox](const IncomingMessage& message) -> std::optional<Landing> {
      const std::string header(reinterpret_cast<const char*>(message.header.data()),
                               message.header.size());
      inbox.headers.push_back(header);
      inbox.from.push_back(message.from);
      ++inbox.posted;
      auto bytes = std::make_shared<Bytes>(message.payload_bytes);
      Landing landing;
      // Three uneven spans, one of them empty.
      const size_t third = bytes->size() / 3;
      landing.spans = {MutableSpan(*bytes).subspan(0, third), MutableSpan(),
                       MutableSpan(*bytes).subspan(third)};
      landing.landed = [&inbox, header, bytes](absl::Status status) {
        inbox.landed.push_back(status);
        if (status.ok()) inbox.payloads[header] = *bytes;
      };
      return landing;
    });
  }

  // What callbacks write to outlives the transports of a test, whose destructors still run some.
  Inbox& NewInbox() { return inboxes_.emplace_back(); }
  std::vector<absl::Status>& NewStatuses() { return statuses_.emplace_back(); }

  static ConstSpan Header(const std::string& text) { return std::as_bytes(std::span(text)); }
  static Bytes RandomBytes(size_t size, uint64_t seed) {
    std::mt19937_64 random(seed);
    Bytes bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
  }
  static Transport::Done Note(std::vector<absl::Status>& done) {
    return [&done](absl::Status status) { done.push_back(status); };
  }

  bool hung_ = false;
  InprocNetwork network_{std::make_unique<HangingDelivery>(&hung_)};
  int opened_ = 0;
  std::deque<Inbox> inboxes_;
  std::deque<std::vector<absl::Status>> statuses_;
};

std::string KindName(const testing::TestParamInfo<Kind>& kind) {
  switch (kind.param) {
    case Kind::kInproc:
      return "Inproc";
    case Kind::kUcxRendezvous:
      return "UcxRendezvous";
    case Kind::kUcxEager:
      return "UcxEager";
  }
  return "";
}

INSTANTIATE_TEST_SUITE_P(Transports, TransportContractTest,
                         testing::Values(Kind::kInproc, Kind::kUcxRendezvous, Kind::kUcxEager),
                         KindName);

TEST_P(TransportContractTest, GathersAndScattersThePayload) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  const Bytes payload = RandomBytes(100'000, 1);
  std::vector<absl::Status>& done = NewStatuses();

  const PeerId peer = a->Connect(b->address()).value();
  a->Send(peer, kType, Header("hello"),
          {ConstSpan(payload).subspan(0, 7), ConstSpan(payload).subspan(7, 50'000), ConstSpan(),
           ConstSpan(payload).subspan(50'007)},
          Note(done));
  EXPECT_TRUE(done.empty()) << "a callback ran inside Send()";

  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return done.size() == 1 && !inbox.landed.empty(); }));
  EXPECT_TRUE(done[0].ok()) << done[0];
  EXPECT_EQ(inbox.payloads["hello"], payload);
}

// Goal: what has come through the transport's own memory is left to the landing, if that wants it.
TEST_P(TransportContractTest, TheLandingMayCopyThePayloadItself) {
  const auto a = Open(), b = Open();
  std::vector<absl::Status>& done = NewStatuses();
  std::vector<absl::Status>& landed = NewStatuses();
  const Bytes payload = RandomBytes(1000, 4);
  Bytes memory(payload.size());
  int copies = 0;
  bool fails = false;
  b->OnMessage(kType, [&](const IncomingMessage&) -> std::optional<Landing> {
    Landing landing = {{MutableSpan(memory)}, Note(landed)};
    landing.copy = [&](ConstSpan arrived) -> absl::Status {
      ++copies;
      if (fails) return absl::DataLossError("no copy");
      std::copy(arrived.begin(), arrived.end(), memory.begin());
      return absl::OkStatus();
    };
    return landing;
  });
  const PeerId peer = a->Connect(b->address()).value();
  a->Send(peer, kType, Header("x"), {payload}, Note(done));
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return done.size() == 1 && !landed.empty(); }));

  EXPECT_EQ(landed[0], absl::OkStatus());
  EXPECT_EQ(memory, payload);
  EXPECT_EQ(copies, GetParam() == Kind::kUcxEager ? 1 : 0);

  fails = true;
  a->Send(peer, kType, Header("y"), {payload}, Note(done));
  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return done.size() == 2 && landed.size() == 2; }));
  EXPECT_EQ(landed[1].code(),
            GetParam() == Kind::kUcxEager ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk);
}

TEST_P(TransportContractTest, AnswersReachTheSender) {
  const auto a = Open(), b = Open();
  Inbox& at_a = NewInbox();
  Inbox& at_b = NewInbox();
  TakeAll(*a, at_a);
  TakeAll(*b, at_b);
  std::vector<absl::Status>& done = NewStatuses();

  a->Send(a->Connect(b->address()).value(), kType, Header("question"), {}, Note(done));
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return at_b.headers.size() == 1; }));
  b->Send(at_b.from[0], kType, Header("answer"), {}, Note(done));

  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return at_a.headers.size() == 1 && done.size() == 2; }));
  EXPECT_EQ(at_a.headers[0], "answer");
  EXPECT_EQ(at_a.from[0], a->Connect(b->address()).value());
}

TEST_P(TransportContractTest, ARefusedPayloadDoesNotFailTheSender) {
  const auto a = Open(), b = Open();
  int asked = 0;
  b->OnMessage(kType, [&](const IncomingMessage& message) -> std::optional<Landing> {
    ++asked;
    EXPECT_EQ(message.payload_bytes, 5000u);
    return std::nullopt;
  });
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox, kOtherType);
  const Bytes payload = RandomBytes(5000, 2);
  std::vector<absl::Status>& done = NewStatuses();

  const PeerId peer = a->Connect(b->address()).value();
  a->Send(peer, kType, Header("refused"), {payload}, Note(done));
  a->Send(peer, /*nobody takes it*/ 99, Header("unknown type"), {payload}, Note(done));
  a->Send(peer, kOtherType, Header("taken"), {payload}, Note(done));

  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return done.size() == 3 && inbox.landed.size() == 1; }));
  EXPECT_THAT(done, testing::Each(absl::OkStatus()));
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(inbox.payloads["taken"], payload);
}

// Goal: a message that finds no room waits in order with those behind it, unharmed, while messages
// of other types pass.
TEST_P(TransportContractTest, APostponedMessageIsOfferedAgain) {
  const auto a = Open(), b = Open();
  std::vector<absl::Status>& done = NewStatuses();
  Inbox& inbox = NewInbox();
  Inbox& others = NewInbox();
  bool room = false;
  int offered = 0;
  TakeAll(*b, others, kOtherType);
  b->OnMessage(kType, [&](const IncomingMessage& message) -> std::optional<Landing> {
    ++offered;
    if (!room) return Landing{.spans = {}, .landed = nullptr, .postponed = true};
    const std::string header(reinterpret_cast<const char*>(message.header.data()),
                             message.header.size());
    inbox.headers.push_back(header);
    auto bytes = std::make_shared<Bytes>(message.payload_bytes);
    return Landing{{MutableSpan(*bytes)}, [&inbox, header, bytes](const absl::Status& status) {
                     inbox.landed.push_back(status);
                     inbox.payloads[header] = *bytes;
                   }};
  });
  const PeerId peer = a->Connect(b->address()).value();
  const std::map<std::string, Bytes> payloads = {
      {"1", RandomBytes(100'000, 1)}, {"2", RandomBytes(300'000, 2)}, {"3", RandomBytes(10, 3)}};
  for (const auto& [header, payload] : payloads) {
    a->Send(peer, kType, Header(header), {payload}, Note(done));
  }
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return offered > 0; }));
  a->Send(peer, kOtherType, Header("passes"), {}, Note(done));
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return others.landed.size() == 1; }));
  EXPECT_TRUE(inbox.headers.empty());

  room = true;

  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return inbox.landed.size() == 3 && done.size() == 4; }));
  EXPECT_EQ(inbox.payloads, payloads);
  for (const absl::Status& status : done) EXPECT_TRUE(status.ok()) << status;
}

TEST_P(TransportContractTest, APostponedMessageEndsWithItsPeer) {
  auto a = Open();
  const auto b = Open();
  std::vector<absl::Status>& done = NewStatuses();
  Inbox& inbox = NewInbox();
  int offered = 0, lost = 0;
  bool room = false;
  b->OnPeerLost([&](PeerId, const absl::Status&) { ++lost; });
  b->OnMessage(kType, [&](const IncomingMessage&) -> std::optional<Landing> {
    ++offered;
    if (!room) return Landing{.spans = {}, .landed = nullptr, .postponed = true};
    return std::nullopt;
  });
  const Bytes payload = RandomBytes(100'000, 1);
  for (int i = 0; i < 3; ++i) {
    a->Send(a->Connect(b->address()).value(), kType, Header("x"), {payload}, Note(done));
  }
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return offered > 0; }));

  a.reset();

  EXPECT_EQ(done.size(), 3u);
  ASSERT_TRUE(PollUntil({b.get()}, [&] { return lost == 1; }));
  room = true;
  offered = 0;
  for (int i = 0; i < 100; ++i) b->Poll();
  EXPECT_EQ(offered, 0) << "nobody is there to send it";
  // The next one is heard as ever.
  const auto c = Open();
  TakeAll(*b, inbox);
  c->Send(c->Connect(b->address()).value(), kType, Header("next"), {payload}, Note(done));
  ASSERT_TRUE(PollUntil({b.get(), c.get()}, [&] { return inbox.landed.size() == 1; }));
  EXPECT_EQ(inbox.payloads["next"], payload);
}

TEST_P(TransportContractTest, ATransportMayGoWithMessagesPostponed) {
  const auto a = Open();
  auto b = Open();
  std::vector<absl::Status>& done = NewStatuses();
  int offered = 0;
  b->OnMessage(kType, [&](const IncomingMessage&) {
    ++offered;
    return Landing{.spans = {}, .landed = nullptr, .postponed = true};
  });
  const Bytes payload = RandomBytes(100'000, 1);
  for (int i = 0; i < 3; ++i) {
    a->Send(a->Connect(b->address()).value(), kType, Header("x"), {payload}, Note(done));
  }
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return offered > 0; }));

  b.reset();

  EXPECT_TRUE(PollUntil({a.get()}, [&] { return done.size() == 3; }));
}

TEST_P(TransportContractTest, AnEmptyPayloadLands) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  std::vector<absl::Status>& done = NewStatuses();
  const PeerId peer = a->Connect(b->address()).value();

  a->Send(peer, kType, Header("no spans"), {}, Note(done));
  a->Send(peer, kType, Header("an empty span"), {ConstSpan()}, Note(done));
  a->Send(peer, kType, Header(""), {}, Note(done));

  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return done.size() == 3 && inbox.landed.size() == 3; }));
  EXPECT_THAT(done, testing::Each(absl::OkStatus()));
  EXPECT_THAT(inbox.headers, testing::UnorderedElementsAre("no spans", "an empty span", ""));
}

TEST_P(TransportContractTest, BigPayloadsAndTheLongestHeaderArrive) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  const Bytes payload = RandomBytes(size_t{8} << 20, 3);
  const std::string header(Transport::kHeaderBytesMax, 'h');
  std::vector<ConstSpan> pieces;
  for (size_t at = 0; at < payload.size(); at += 4096) {
    pieces.push_back(ConstSpan(payload).subspan(at, 4096));
  }
  std::vector<absl::Status>& done = NewStatuses();

  a->Send(a->Connect(b->address()).value(), kType, Header(header), pieces, Note(done));

  ASSERT_TRUE(
      PollUntil({a.get(), b.get()}, [&] { return done.size() == 1 && inbox.landed.size() == 1; }));
  EXPECT_EQ(inbox.payloads[header], payload);
}

TEST_P(TransportContractTest, ManyMessagesBothWaysAtOnce) {
  constexpr int kCount = 200;
  const auto a = Open(), b = Open();
  Inbox& at_a = NewInbox();
  Inbox& at_b = NewInbox();
  TakeAll(*a, at_a);
  TakeAll(*b, at_b);
  std::mt19937_64 random(4);
  std::vector<Bytes> payloads;
  for (int i = 0; i < 2 * kCount; ++i) payloads.push_back(RandomBytes(random() % 40'000, i));
  std::vector<absl::Status>& done = NewStatuses();
  const PeerId to_b = a->Connect(b->address()).value();
  const PeerId to_a = b->Connect(a->address()).value();

  for (int i = 0; i < kCount; ++i) {
    a->Send(to_b, kType, Header(std::to_string(2 * i)), {payloads[2 * i]}, Note(done));
    b->Send(to_a, kType, Header(std::to_string(2 * i + 1)), {payloads[2 * i + 1]}, Note(done));
  }

  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] {
    return done.size() == 2 * kCount && at_a.landed.size() == kCount &&
           at_b.landed.size() == kCount;
  }));
  EXPECT_THAT(done, testing::Each(absl::OkStatus()));
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(at_b.payloads[std::to_string(2 * i)], payloads[2 * i]);
    EXPECT_EQ(at_a.payloads[std::to_string(2 * i + 1)], payloads[2 * i + 1]);
  }
}

TEST_P(TransportContractTest, ConnectingAgainGivesTheSamePeer) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  const PeerId peer = a->Connect(b->address()).value();
  EXPECT_EQ(a->Connect(b->address()).value(), peer);

  a->Send(peer, kType, Header("x"), {}, [](const absl::Status&) {});
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return inbox.headers.size() == 1; }));

  EXPECT_EQ(b->Connect(a->address()).value(), inbox.from[0]);
}

TEST_P(TransportContractTest, ATransportReachesItself) {
  const auto a = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*a, inbox);
  const Bytes payload = RandomBytes(300'000, 5);
  std::vector<absl::Status>& done = NewStatuses();

  const PeerId self = a->Connect(a->address()).value();
  a->Send(self, kType, Header("me"), {payload}, Note(done));

  ASSERT_TRUE(PollUntil({a.get()}, [&] { return done.size() == 1 && inbox.landed.size() == 1; }));
  EXPECT_EQ(inbox.payloads["me"], payload);
}

TEST_P(TransportContractTest, CallbacksMaySendAndClose) {
  const auto a = Open(), b = Open();
  std::vector<absl::Status>& done = NewStatuses();
  int lost_at_a = 0, lost_at_b = 0;
  a->OnPeerLost([&](PeerId, const absl::Status&) { ++lost_at_a; });
  b->OnPeerLost([&](PeerId, const absl::Status&) { ++lost_at_b; });
  b->OnMessage(kType, [&](const IncomingMessage& message) -> std::optional<Landing> {
    b->Send(message.from, kType, Header("too late"), {}, Note(done));
    b->ForceClose(message.from);
    return Landing{{}, Note(done)};
  });

  a->Send(a->Connect(b->address()).value(), kType, Header("x"), {}, Note(done));

  ASSERT_TRUE(PollUntil({a.get(), b.get()},
                        [&] { return done.size() == 3 && lost_at_a == 1 && lost_at_b == 1; }));
}

// Goal: what a peer said before its connection was closed is not taken for the word of a peer whose
// connection has come since, wherever that one lies in memory.
// Method: several messages are there at once, and the first callback closes and connects.
TEST_P(TransportContractTest, WhatAClosedPeerHasSaidIsNotAnothersWord) {
  const auto a = Open(), b = Open(), c = Open();
  std::vector<absl::Status>& done = NewStatuses();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox, kOtherType);
  std::vector<PeerId> from;
  b->OnMessage(kType, [&](const IncomingMessage& message) -> std::optional<Landing> {
    from.push_back(message.from);
    b->ForceClose(message.from);
    EXPECT_TRUE(b->Connect(c->address()).ok());
    return std::nullopt;
  });
  const PeerId peer = a->Connect(b->address()).value();
  a->Send(peer, kOtherType, Header("connects"), {}, Note(done));
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return inbox.landed.size() == 1; }));

  for (int i = 0; i < 3; ++i) a->Send(peer, kType, Header("x"), {}, Note(done));
  for (int i = 0; i < 1000; ++i) a->Poll();
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return done.size() == 4 && !from.empty(); }));

  EXPECT_THAT(from, testing::ElementsAre(inbox.from[0]));
}

TEST_P(TransportContractTest, GarbageIsNoAddress) {
  const auto a = Open(), b = Open();
  std::mt19937_64 random(6);
  for (int size = 0; size < 300; ++size) {
    std::string garbage(size, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    EXPECT_EQ(a->Connect(garbage).status().code(), absl::StatusCode::kInvalidArgument);
  }
  if (GetParam() == Kind::kInproc) return;  // Its addresses are plain names.
  for (size_t i = 0; i < b->address().size(); ++i) {
    std::string damaged = b->address();
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (random() % 8)));
    EXPECT_FALSE(a->Connect(damaged).ok()) << i;
    EXPECT_FALSE(a->Connect(b->address().substr(0, i)).ok()) << i;
  }
}

TEST_P(TransportContractTest, NobodyAtTheAddressIsALostPeer) {
  const auto a = Open();
  std::vector<PeerId> lost;
  a->OnPeerLost([&](PeerId peer, const absl::Status& status) {
    EXPECT_FALSE(status.ok());
    lost.push_back(peer);
  });
  auto b = Open();
  const std::string address = b->address();
  b.reset();
  const Bytes payload = RandomBytes(10'000, 7);
  std::vector<absl::Status>& done = NewStatuses();

  const absl::StatusOr<PeerId> peer = a->Connect(address);
  if (!peer.ok()) {  // Known at once: that is allowed too.
    EXPECT_EQ(peer.status().code(), absl::StatusCode::kUnavailable);
    return;
  }
  for (int i = 0; i < 3; ++i) a->Send(*peer, kType, Header("x"), {payload}, Note(done));

  ASSERT_TRUE(PollUntil({a.get()}, [&] { return done.size() == 3 && lost.size() == 1; }));
  for (const absl::Status& status : done) EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(lost[0], *peer);
  a->Send(*peer, kType, Header("x"), {}, Note(done));
  ASSERT_TRUE(PollUntil({a.get()}, [&] { return done.size() == 4; }));
  EXPECT_EQ(done[3].code(), absl::StatusCode::kUnavailable);
}

// Goal: whenever a peer goes, each send ends once, its loss is told once, and others do not notice.
// Method: destroy the receiver after n polls, for many n, with a healthy pair beside.
TEST_P(TransportContractTest, APeerThatGoesMidTransferEndsEverySendOnce) {
  constexpr int kSends = 12;
  const Bytes payload = RandomBytes(200'000, 8);
  for (int polls = 0; polls < 30; polls += 3) {
    SCOPED_TRACE(polls);
    const auto a = Open(), healthy = Open();
    auto b = Open();
    Inbox& at_b = NewInbox();
    Inbox& at_healthy = NewInbox();
    TakeAll(*b, at_b);
    TakeAll(*healthy, at_healthy);
    int lost = 0;
    a->OnPeerLost([&](PeerId, const absl::Status&) { ++lost; });
    std::vector<absl::Status>& done = NewStatuses();
    std::vector<absl::Status>& healthy_done = NewStatuses();
    const PeerId to_b = a->Connect(b->address()).value();
    const PeerId to_healthy = a->Connect(healthy->address()).value();
    for (int i = 0; i < kSends; ++i) {
      a->Send(to_b, kType, Header("b" + std::to_string(i)), {payload}, Note(done));
      a->Send(to_healthy, kType, Header("h" + std::to_string(i)), {payload}, Note(healthy_done));
    }
    for (int i = 0; i < polls; ++i) {
      a->Poll();
      b->Poll();
      healthy->Poll();
    }

    b.reset();

    EXPECT_EQ(at_b.landed.size(), at_b.posted) << "a posted receive never ended";
    ASSERT_TRUE(PollUntil({a.get(), healthy.get()}, [&] {
      return done.size() == kSends && lost == 1 && healthy_done.size() == kSends &&
             at_healthy.landed.size() == kSends;
    }));
    EXPECT_THAT(healthy_done, testing::Each(absl::OkStatus()));
    EXPECT_EQ(at_healthy.payloads["h3"], payload);
  }
}

TEST_P(TransportContractTest, AfterAForcedCloseThePairConnectsAgain) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  int lost_at_a = 0, lost_at_b = 0;
  a->OnPeerLost([&](PeerId, const absl::Status&) { ++lost_at_a; });
  b->OnPeerLost([&](PeerId, const absl::Status&) { ++lost_at_b; });
  std::vector<absl::Status>& done = NewStatuses();
  const Bytes payload = RandomBytes(50'000, 9);
  PeerId last{};

  for (int round = 1; round <= 4; ++round) {
    SCOPED_TRACE(round);
    const PeerId peer = a->Connect(b->address()).value();
    EXPECT_NE(peer, last);
    last = peer;
    a->Send(peer, kType, Header("x"), {payload}, Note(done));
    ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] {
      return done.size() == static_cast<size_t>(round) &&
             inbox.landed.size() == static_cast<size_t>(round);
    }));
    ASSERT_TRUE(inbox.landed.back().ok());
    // Sides take turns in closing.
    if (round % 2 == 0) {
      a->ForceClose(peer);
    } else {
      b->ForceClose(inbox.from.back());
    }
    ASSERT_TRUE(
        PollUntil({a.get(), b.get()}, [&] { return lost_at_a == round && lost_at_b == round; }));
  }
}

TEST_P(TransportContractTest, AConnectionClosedBeforeItWasUpMayBeTriedAgain) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  std::vector<absl::Status>& done = NewStatuses();
  for (int i = 0; i < 3; ++i) {
    const PeerId peer = a->Connect(b->address()).value();
    a->Send(peer, kType, Header("lost"), {}, Note(done));
    for (int polls = 0; polls < i; ++polls) {
      a->Poll();
      b->Poll();
    }
    a->ForceClose(peer);
  }
  const size_t arrived = inbox.headers.size();

  a->Send(a->Connect(b->address()).value(), kType, Header("found"), {}, Note(done));

  ASSERT_TRUE(PollUntil({a.get(), b.get()},
                        [&] { return done.size() == 4 && inbox.headers.size() > arrived; }));
  EXPECT_EQ(inbox.headers.back(), "found");
}

// What only holds where a receive stays posted for a while.
class PostedReceiveTest : public TransportContractTest {};
INSTANTIATE_TEST_SUITE_P(Transports, PostedReceiveTest,
                         testing::Values(Kind::kInproc, Kind::kUcxRendezvous), KindName);

// Goal: a peer that hangs holds a posted receive for ever; closing by force gives the memory back.
// Method: the sender is not polled any more once its header is out.
TEST_P(PostedReceiveTest, AForcedCloseEndsPostedReceivesAndNothingLandsAfter) {
  const auto a = Open(), b = Open(), c = Open();
  hung_ = true;
  Bytes memory(size_t{4} << 20);
  std::vector<absl::Status>& landed = NewStatuses();
  std::vector<absl::Status>& done = NewStatuses();
  PeerId from{};
  b->OnMessage(kType, [&](const IncomingMessage& message) -> std::optional<Landing> {
    from = message.from;
    return Landing{{MutableSpan(memory)}, Note(landed)};
  });
  Inbox& at_c = NewInbox();
  TakeAll(*c, at_c);
  const Bytes payload = RandomBytes(memory.size(), 10);
  a->Send(a->Connect(b->address()).value(), kType, Header("x"), {payload}, Note(done));
  const PeerId to_c = b->Connect(c->address()).value();
  for (int i = 0; i < 200'000 && from == PeerId{}; ++i) {
    a->Poll();
    b->Poll();
  }
  ASSERT_NE(from, PeerId{});
  ASSERT_FALSE(PollUntil(
      {b.get()}, [&] { return !landed.empty(); }, std::chrono::milliseconds(100)));

  b->ForceClose(from);

  ASSERT_TRUE(PollUntil({b.get()}, [&] { return landed.size() == 1; }));
  EXPECT_EQ(landed[0].code(), absl::StatusCode::kCancelled);
  const Bytes fence(memory.size(), std::byte{0x5a});
  memory = fence;
  hung_ = false;
  ASSERT_TRUE(PollUntil({a.get(), b.get()}, [&] { return done.size() == 1; }));
  std::vector<absl::Status>& other_done = NewStatuses();
  b->Send(to_c, kType, Header("still here"), {}, Note(other_done));
  ASSERT_TRUE(PollUntil({a.get(), b.get(), c.get()}, [&] { return at_c.landed.size() == 1; }));
  EXPECT_EQ(memory, fence);
  EXPECT_EQ(landed.size(), 1u);
}

TEST_P(PostedReceiveTest, AForcedCloseEndsSendsToAPeerThatDoesNotRead) {
  const auto a = Open(), b = Open();
  Inbox& inbox = NewInbox();
  TakeAll(*b, inbox);
  hung_ = true;
  const Bytes payload = RandomBytes(1'000'000, 11);
  std::vector<absl::Status>& done = NewStatuses();
  std::vector<absl::Status>& first = NewStatuses();
  const PeerId peer = a->Connect(b->address()).value();
  a->Send(peer, kType, Header("connects"), {}, [&](absl::Status s) { first.push_back(s); });
  for (int i = 0; i < 200'000 && inbox.headers.empty(); ++i) {
    a->Poll();
    b->Poll();
  }
  for (int i = 0; i < 5; ++i) a->Send(peer, kType, Header("x"), {payload}, Note(done));
  ASSERT_FALSE(PollUntil(
      {a.get()}, [&] { return !done.empty(); }, std::chrono::milliseconds(100)));

  a->ForceClose(peer);

  ASSERT_TRUE(PollUntil({a.get()}, [&] { return done.size() == 5; }));
  for (const absl::Status& status : done) EXPECT_FALSE(status.ok());
}

}  // namespace
}  // namespace baton
