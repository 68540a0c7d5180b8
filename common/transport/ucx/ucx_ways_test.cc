// A peer with several addresses is reached although one of them swallows everything: nobody says
// so, and UCX finds out after minutes.
#include "common/transport/ucx/ucx_ways.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/transport/testing/polling.h"
#include "common/transport/ucx/ucx_address.h"
#include "common/transport/ucx/ucx_transport.h"

namespace baton {
namespace {

constexpr MessageType kType = 1;

// A socket that listens and whose queue is full: Linux drops what wants to connect to it.
class BlackHole {
 public:
  BlackHole(const std::string& host, uint16_t port) {
    const SocketAddress address = MakeSocketAddress(host, port).value();
    const int listener = NewSocket(0);
    EXPECT_EQ(bind(listener, address.get(), address.length), 0);
    EXPECT_EQ(listen(listener, 0), 0);
    for (int i = 0; i < 2; ++i) {
      connect(NewSocket(SOCK_NONBLOCK), address.get(), address.length);
    }
  }
  ~BlackHole() {
    for (const int one : sockets_) close(one);
  }
  BlackHole(const BlackHole&) = delete;
  BlackHole& operator=(const BlackHole&) = delete;

 private:
  int NewSocket(int flags) {
    sockets_.push_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
    return sockets_.back();
  }

  std::vector<int> sockets_;
};

std::vector<SocketAddress> ThreeWays() {
  return {MakeSocketAddress("10.0.0.1", 1).value(), MakeSocketAddress("10.0.0.1", 2).value(),
          MakeSocketAddress("10.0.0.1", 3).value()};
}

std::vector<int> Order(Ways ways) {
  std::vector<int> ports;
  while (ways.more()) ports.push_back(PortOf(ways.Next()));
  return ports;
}

TEST(FirstWaysTest, ConnectionsBeginWithTheWayThatWasGoodOrFollowsABadOne) {
  FirstWays first(2);
  Ways ways = first.Begin("a", ThreeWays());
  EXPECT_EQ(Order(ways), (std::vector<int>{1, 2, 3}));

  ways.Next();
  first.Bad("a", ways);
  EXPECT_EQ(Order(first.Begin("a", ThreeWays())), (std::vector<int>{2, 3, 1}));
  EXPECT_EQ(Order(first.Begin("b", ThreeWays())), (std::vector<int>{1, 2, 3}));
  ways.Next();
  ways.Next();
  first.Good("a", ways);
  EXPECT_EQ(Order(first.Begin("a", ThreeWays())), (std::vector<int>{3, 1, 2}));
  first.Bad("a", ways);
  EXPECT_EQ(Order(first.Begin("a", ThreeWays())), (std::vector<int>{1, 2, 3}));
}

TEST(FirstWaysTest, AddressesAreBounded) {
  FirstWays first(2);
  for (const char* address : {"a", "b", "c"}) {
    Ways ways = first.Begin(address, ThreeWays());
    ways.Next();
    first.Bad(address, ways);
  }

  EXPECT_EQ(Order(first.Begin("a", ThreeWays())), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(Order(first.Begin("c", ThreeWays())), (std::vector<int>{2, 3, 1}));
}

class UcxWaysTest : public testing::Test {
 protected:
  UcxWaysTest() {
    to_->OnMessage(kType, [this](const IncomingMessage&) -> std::optional<Landing> {
      ++arrived_;
      return Landing{{}, [](const absl::Status&) {}};
    });
    from_->OnPeerLost([this](PeerId, const absl::Status&) { ++lost_; });
  }

  // Also at a host where nobody answers, which comes first.
  std::string AddressWith(const std::string& host) const {
    UcxAddress address = DecodeUcxAddress(to_->address()).value();
    address.hosts.insert(address.hosts.begin(), host);
    return EncodeUcxAddress(address);
  }
  uint16_t port() const { return DecodeUcxAddress(to_->address())->port; }

  PeerId Send(const std::string& address) {
    const PeerId peer = from_->Connect(address).value();
    from_->Send(peer, kType, {}, {}, [](const absl::Status&) {});
    return peer;
  }
  bool Arrives(int count, Duration bound) {
    return PollUntil(
        {from_.get(), to_.get()}, [&] { return arrived_ == count; }, bound);
  }

  static constexpr Duration kConnectTime = std::chrono::seconds(2);
  const std::unique_ptr<Transport> to_ = OpenUcxTransport({.listen_host = "127.0.0.1"}).value();
  const std::unique_ptr<Transport> from_ =
      OpenUcxTransport({.listen_host = "127.0.0.1", .connect_time = kConnectTime}).value();
  int arrived_ = 0;
  int lost_ = 0;
};

TEST_F(UcxWaysTest, AWayThatSwallowsEverythingIsGivenUpForTheNext) {
  const BlackHole hole("127.0.0.2", port());

  Send(AddressWith("127.0.0.2"));

  EXPECT_TRUE(Arrives(1, 3 * kConnectTime));
  EXPECT_EQ(lost_, 0);
}

TEST_F(UcxWaysTest, TheWayThatWasGoodIsTheFirstToTryAgain) {
  const BlackHole hole("127.0.0.2", port());
  const std::string address = AddressWith("127.0.0.2");
  const PeerId peer = Send(address);
  ASSERT_TRUE(Arrives(1, 3 * kConnectTime));
  from_->ForceClose(peer);

  Send(address);

  EXPECT_TRUE(Arrives(2, kConnectTime / 2));
}

// The layer above may give up sooner than all ways are tried.
TEST_F(UcxWaysTest, AConnectionThatWasGivenUpIsTriedOverTheNextWay) {
  const BlackHole hole("127.0.0.2", port());
  const std::string address = AddressWith("127.0.0.2");
  const PeerId peer = Send(address);
  ASSERT_FALSE(Arrives(1, std::chrono::milliseconds(100)));
  from_->ForceClose(peer);

  Send(address);

  EXPECT_TRUE(Arrives(1, kConnectTime / 2));
}

TEST_F(UcxWaysTest, TheOnlyWayIsNotGivenUp) {
  UcxAddress address = DecodeUcxAddress(to_->address()).value();
  address.hosts = {"127.0.0.2"};
  const BlackHole hole("127.0.0.2", port());

  Send(EncodeUcxAddress(address));

  EXPECT_FALSE(Arrives(1, kConnectTime + std::chrono::milliseconds(100)));
  EXPECT_EQ(lost_, 0);
}

}  // namespace
}  // namespace baton
