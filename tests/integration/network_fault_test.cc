// Goal: a prefill and a decode worker that lose each other, and nobody else, cost a pause.
// Method: the decode worker lives in a network namespace with two links to the rest: one for its
// sessions and one for KV, which is cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/testing/cluster_streams.h"

namespace baton {
namespace {

// Addresses and names are this process's, so that two runs do not meet.
class SplitNetwork {
 public:
  SplitNetwork() {
    const int id = getpid() % 250;
    name_ = absl::StrCat("baton", getpid());
    sessions_ = absl::StrCat("10.231.", id, ".");
    kv_ = absl::StrCat("10.232.", id, ".");
    made_ = Run(absl::StrCat("ip netns add ", name_)) && MakeLink("s", sessions_) &&
            MakeLink("k", kv_) && Run(absl::StrCat("ip -n ", name_, " link set lo up"));
  }
  // The links go with the namespace.
  ~SplitNetwork() { Run(absl::StrCat("ip netns del ", name_)); }
  SplitNetwork(const SplitNetwork&) = delete;
  SplitNetwork& operator=(const SplitNetwork&) = delete;

  // False: this machine does not let us.
  bool made() const { return made_; }

  std::string outer_kv_address() const { return kv_ + "1"; }
  // A command that runs inside, with flags that make a worker use both links.
  void PutInside(std::vector<std::string>* command) const {
    command->insert(command->begin(), {"ip", "netns", "exec", name_});
    command->push_back(absl::StrCat("--listen=", sessions_, "2:0"));
    command->push_back(absl::StrCat("--transfer_host=", kv_, "2"));
  }
  void Cut() { Run(absl::StrCat("ip -n ", name_, " link set ", Inner("k"), " down")); }
  void Mend() { Run(absl::StrCat("ip -n ", name_, " link set ", Inner("k"), " up")); }

 private:
  static bool Run(const std::string& command) {
    return std::system(absl::StrCat(command, " 2>/dev/null").c_str()) == 0;
  }
  std::string Outer(const char* link) const { return absl::StrCat("b", getpid(), link, "o"); }
  std::string Inner(const char* link) const { return absl::StrCat("b", getpid(), link, "i"); }
  bool MakeLink(const char* link, const std::string& network) {
    return Run(absl::StrCat("ip link add ", Outer(link), " type veth peer name ", Inner(link),
                            " netns ", name_)) &&
           Run(absl::StrCat("ip addr add ", network, "1/24 dev ", Outer(link))) &&
           Run(absl::StrCat("ip link set ", Outer(link), " up")) &&
           Run(absl::StrCat("ip -n ", name_, " addr add ", network, "2/24 dev ", Inner(link))) &&
           Run(absl::StrCat("ip -n ", name_, " link set ", Inner(link), " up"));
  }

  std::string name_;
  std::string sessions_;  // The first three numbers of addresses.
  std::string kv_;
  bool made_ = false;
};

bool SaysNoPath(const v1::GetClusterResponse& status) {
  return std::any_of(status.workers().begin(), status.workers().end(),
                     [](const v1::WorkerStatus& worker) {
                       return worker.reason().find("no KV path") != std::string::npos;
                     });
}

class NetworkFaultTest : public ClusterStreamsTest {};

TEST_F(NetworkFaultTest, PairThatIsCutIsLeftAloneAndComesBack) {
  SplitNetwork network;
  if (!network.made()) GTEST_SKIP() << "network namespaces cannot be made here (root is needed)";
  // Decode worker 0 is inside; decode worker 1 is reached whatever happens.
  StartCluster(
      {.model = folder_->path(),
       .prefill = 1,
       .decode = 2,
       .worker_flags = {"--transfer_seconds=2"},
       .decode_flags = {"--local_prefill=never"},
       .router_flags = {},
       .place = [&network](const std::string& role, int index, std::vector<std::string>* command) {
         if (role == "decode" && index == 0) return network.PutInside(command);
         command->push_back("--transfer_host=" + network.outer_kv_address());
       }});
  const std::vector<v1::GenerateRequest> requests = LongRequests();
  std::atomic<bool> enough = false;
  std::atomic<int> served = 0;
  std::vector<std::thread> clients;
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back([&, i] {
      while (!enough) {
        v1::GenerateRequest request = requests[i];
        request.set_max_tokens(20);
        const Answer answer = cluster_->Generate(request, kDeadline);
        EXPECT_TRUE(answer.status.ok()) << answer.status;
        EXPECT_EQ(answer.tokens.size(), 20u);
        EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), (*oracle_)[i].begin()));
        ++served;
      }
    });
  }
  EXPECT_TRUE(cluster_->WaitUntil([&served](const auto&) { return served > 2 * kStreams; }));

  network.Cut();
  EXPECT_TRUE(cluster_->WaitUntil(SaysNoPath, std::chrono::seconds(60)));
  const int before = served;
  EXPECT_TRUE(cluster_->WaitUntil([&](const auto&) { return served > before + 2 * kStreams; }))
      << "the other decode worker serves on";
  network.Mend();
  EXPECT_TRUE(cluster_->WaitUntil([](const auto& status) { return !SaysNoPath(status); },
                                  std::chrono::seconds(60)));
  enough = true;
  for (std::thread& client : clients) client.join();

  ExpectServesAndRests();
}

}  // namespace
}  // namespace baton
