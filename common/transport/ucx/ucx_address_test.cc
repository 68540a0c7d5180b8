#include "common/transport/ucx/ucx_address.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton {
namespace {

const UcxAddress kAddress = {0x1111, 0x2222, 4321, {"127.0.0.1", "10.1.2.3", "192.168.7.9"}};

std::vector<std::string> Hosts(const std::vector<SocketAddress>& ways) {
  std::vector<std::string> hosts;
  for (const SocketAddress& way : ways) {
    char text[INET6_ADDRSTRLEN] = {};
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(way.storage).sin_addr, text,
              sizeof(text));
    EXPECT_EQ(PortOf(way), 4321);
    hosts.push_back(text);
  }
  return hosts;
}

TEST(UcxAddressTest, SurvivesTheRoundTrip) {
  const absl::StatusOr<UcxAddress> decoded = DecodeUcxAddress(EncodeUcxAddress(kAddress));

  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->identity, kAddress.identity);
  EXPECT_EQ(decoded->machine, kAddress.machine);
  EXPECT_EQ(decoded->port, kAddress.port);
  EXPECT_EQ(decoded->hosts, kAddress.hosts);
}

TEST(UcxAddressTest, EveryDamagedBitIsNoticed) {
  const std::string address = EncodeUcxAddress(kAddress);
  for (size_t bit = 0; bit < address.size() * 8; ++bit) {
    std::string damaged = address;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(DecodeUcxAddress(damaged).ok()) << bit;
  }
}

TEST(UcxAddressTest, HostsAreNumericAndAtLeastOne) {
  UcxAddress none = kAddress;
  none.hosts.clear();
  EXPECT_FALSE(DecodeUcxAddress(EncodeUcxAddress(none)).ok());
  UcxAddress name = kAddress;
  name.hosts = {"localhost"};
  EXPECT_FALSE(DecodeUcxAddress(EncodeUcxAddress(name)).ok());
  UcxAddress v6 = kAddress;
  v6.hosts = {"fd00::2"};
  EXPECT_TRUE(DecodeUcxAddress(EncodeUcxAddress(v6)).ok());
}

TEST(UcxAddressTest, LoopbackIsTheWayOnTheSameMachineOnly) {
  const std::vector<LocalNetwork> local = {{"127.0.0.1", 8, true}, {"192.168.7.1", 24, false}};

  EXPECT_THAT(Hosts(WaysTo(kAddress, 0x2222, local)),
              testing::ElementsAre("127.0.0.1", "192.168.7.9", "10.1.2.3"));
  EXPECT_THAT(Hosts(WaysTo(kAddress, 0x3333, local)),
              testing::ElementsAre("192.168.7.9", "10.1.2.3"));
}

TEST(UcxAddressTest, ALoneLoopbackAddressIsTaken) {
  UcxAddress forwarded = kAddress;
  forwarded.hosts = {"127.0.0.1"};

  EXPECT_THAT(Hosts(WaysTo(forwarded, 0x3333, {})), testing::ElementsAre("127.0.0.1"));
}

TEST(UcxAddressTest, ThisMachineHasAnIdentityAndALoopback) {
  EXPECT_NE(LocalMachine(), 0u);
  EXPECT_EQ(LocalMachine(), LocalMachine());
  const std::vector<LocalNetwork> networks = LocalNetworks();
  EXPECT_TRUE(std::any_of(networks.begin(), networks.end(),
                          [](const LocalNetwork& network) { return network.loopback; }));
}

}  // namespace
}  // namespace baton
