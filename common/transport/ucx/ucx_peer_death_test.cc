// What UCX does to us when another process dies or stops: each operation still ends once.
//
// The other process is this program again, which is told by its environment; it takes every message
// and answers it with one of a megabyte, until it is killed.
#include <gtest/gtest.h>
#include <poll.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/transport/testing/peer_process.h"
#include "common/transport/testing/polling.h"
#include "common/transport/ucx/ucx_transport.h"

namespace baton {
namespace {

constexpr MessageType kType = 1;

using Bytes = std::vector<std::byte>;

// What the other process does. Writes its address to `pipe`; returns the exit status.
int ServeUntilKilled(int pipe) {
  const auto transport = OpenUcxTransport({}).value();
  const Bytes answer(size_t{1} << 20, std::byte{0x77});
  transport->OnMessage(kType, [&](const IncomingMessage& message) -> std::optional<Landing> {
    transport->Send(message.from, kType, {}, {answer}, [](const absl::Status&) {});
    auto bytes = std::make_shared<Bytes>(message.payload_bytes);
    return Landing{{MutableSpan(*bytes)}, [bytes](const absl::Status&) {}};
  });
  if (!WriteAddress(pipe, transport->address())) return 1;
  PollUntil(
      {transport.get()}, [] { return false; }, std::chrono::seconds(100));
  return 0;
}

class UcxPeerDeathTest : public testing::Test {
 protected:
  UcxPeerDeathTest() : transport_(OpenUcxTransport({}).value()) {
    transport_->OnMessage(kType, [this](const IncomingMessage& message) -> std::optional<Landing> {
      if (refuse_) return std::nullopt;
      ++posted_;
      from_ = message.from;
      auto bytes = std::make_shared<Bytes>(message.payload_bytes);
      received_.push_back(bytes);
      return Landing{{MutableSpan(*bytes)},
                     [this, bytes](const absl::Status& status) { landed_.push_back(status); }};
    });
    transport_->OnPeerLost([this](PeerId, const absl::Status&) { ++lost_; });
  }

  void Send(PeerId peer) {
    ++sent_;
    transport_->Send(peer, kType, {}, {payload_},
                     [this](const absl::Status& status) { done_.push_back(status); });
  }
  bool Until(const std::function<bool()>& happened) {
    return PollUntil({transport_.get()}, happened);
  }

  const Bytes payload_ = Bytes(size_t{1} << 20, std::byte{0x11});
  std::unique_ptr<Transport> transport_;
  bool refuse_ = false;
  size_t sent_ = 0, posted_ = 0;
  int lost_ = 0;
  PeerId from_{};
  std::vector<std::shared_ptr<Bytes>> received_;
  std::vector<absl::Status> done_, landed_;
};

TEST_F(UcxPeerDeathTest, EverySendAndReceiveEndsOnceWhenThePeerIsKilled) {
  PeerProcess healthy;
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    PeerProcess doomed;
    const PeerId peer = transport_->Connect(doomed.address()).value();
    lost_ = 0;
    Send(peer);
    ASSERT_TRUE(Until([&] { return posted_ > 0; }));
    for (int i = 0; i < 64; ++i) Send(peer);
    const size_t some = landed_.size() + static_cast<size_t>(round) * 3;
    ASSERT_TRUE(Until([&] { return landed_.size() >= some; }));

    doomed.Kill();

    ASSERT_TRUE(Until([&] {
      return done_.size() == sent_ && lost_ == 1 && landed_.size() == posted_;
    })) << done_.size()
        << " of " << sent_ << " sends, " << landed_.size() << " of " << posted_;
    const size_t before = landed_.size();
    const PeerId other = transport_->Connect(healthy.address()).value();
    Send(other);
    ASSERT_TRUE(Until([&] { return landed_.size() == before + 1 && done_.size() == sent_; }));
    EXPECT_TRUE(landed_.back().ok());
  }
}

TEST_F(UcxPeerDeathTest, AStoppedPeersReceivesEndByForceAndNothingLandsWhenItWakes) {
  PeerProcess hanging;
  const PeerId peer = transport_->Connect(hanging.address()).value();
  Send(peer);
  ASSERT_TRUE(Until([&] { return landed_.size() == 1; }));
  for (int i = 0; i < 32; ++i) Send(peer);
  ASSERT_TRUE(Until([&] { return posted_ >= 4; }));

  hanging.Stop();
  transport_->ForceClose(from_);

  ASSERT_TRUE(
      Until([&] { return done_.size() == sent_ && landed_.size() == posted_ && lost_ == 1; }));
  for (const auto& bytes : received_) std::fill(bytes->begin(), bytes->end(), std::byte{0x5a});
  const size_t count = received_.size();
  hanging.Continue();
  refuse_ = true;
  ASSERT_FALSE(PollUntil(
      {transport_.get()}, [] { return false; }, std::chrono::milliseconds(300)));
  EXPECT_EQ(landed_.size(), posted_);
  for (size_t i = 0; i < count; ++i) {
    EXPECT_EQ(*received_[i], Bytes(received_[i]->size(), std::byte{0x5a}));
  }
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  if (const std::optional<int> pipe = baton::PeerPipe()) return baton::ServeUntilKilled(*pipe);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
