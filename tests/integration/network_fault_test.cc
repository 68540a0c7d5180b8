// Goal: what happens to the network costs a pause at most: a prefill and a decode worker that lose
// each other, and nobody else; an interface that is removed.
// Method: every worker lives in a network namespace of its own, and the path between two of them is
// cut under load; or workers on loopback start beside such a network, which then goes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/testing/cluster_streams.h"
#include "tests/support/worker_network.h"

namespace baton {
namespace {

constexpr Duration kPatience = std::chrono::seconds(60);

// Of decode worker 0, the only one that is cut off.
bool SaysNoPath(const v1::GetClusterResponse& status) {
  return std::any_of(status.workers().begin(), status.workers().end(),
                     [](const v1::WorkerStatus& worker) {
                       return worker.reason().find("no KV path") != std::string::npos;
                     });
}

class NetworkFaultTest : public ClusterStreamsTest {
 protected:
  ~NetworkFaultTest() override { cluster_.reset(); }  // Before its network.

  void MakeNetwork(int prefill, int decode) {
    auto network = WorkerNetwork::Create(prefill, decode);
    if (absl::IsUnavailable(network.status())) {
      GTEST_SKIP() << "no network namespaces (root and iproute2 are needed): " << network.status();
    }
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
  }

  std::unique_ptr<WorkerNetwork> network_;
};

TEST_F(NetworkFaultTest, InterfaceThatNobodyNeededMayGo) {
  ASSERT_NO_FATAL_FAILURE(MakeNetwork(1, 0));
  if (IsSkipped()) return;
  StartCluster(1, 1, {}, {"--local_prefill=never"});

  const std::vector<Answer> before = RunWithFault([this] { network_.reset(); });
  const std::vector<Answer> after = RunWithFault([] {});

  for (const std::vector<Answer>& answers : {before, after}) {
    ExpectTrueStreams(answers);
    EXPECT_EQ(OkCount(answers), static_cast<size_t>(kStreams));
    EXPECT_EQ(Retries(answers), 0u);
  }
  ExpectServesAndRests();
}

// Parameter: how many prefill workers there are.
class CutPairTest : public NetworkFaultTest, public testing::WithParamInterface<int> {
 protected:
  void StartClusterInNetwork() {
    ASSERT_NO_FATAL_FAILURE(MakeNetwork(GetParam(), 2));
    if (IsSkipped()) return;
    StartCluster(
        {.model = folder_->path(),
         .prefill = GetParam(),
         .decode = 2,
         .worker_flags = {"--transfer_seconds=2"},
         .decode_flags = {"--local_prefill=never"},
         .router_flags = {},
         .place = [this](const std::string& role, int index, std::vector<std::string>* command) {
           network_->Place(role, index, command);
         }});
  }
};

TEST_P(CutPairTest, IsLeftAloneAndComesBack) {
  ASSERT_NO_FATAL_FAILURE(StartClusterInNetwork());
  if (IsSkipped()) return;
  const std::vector<v1::GenerateRequest> requests = LongRequests();
  std::atomic<bool> enough = false;
  std::atomic<int> served = 0, served_by_pair = 0;
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
        if (answer.finished.prefill_worker() == cluster_->prefill_address(0) &&
            answer.finished.decode_worker() == cluster_->decode_address(0)) {
          ++served_by_pair;
        }
      }
    });
  }
  const auto serves_on = [&](const char* when) {
    const int before = served;
    EXPECT_TRUE(
        cluster_->WaitUntil([&](const auto&) { return served > before + 2 * kStreams; }, kPatience))
        << when;
  };
  serves_on("at first");

  EXPECT_TRUE(network_->Cut(0, 0).ok());  // Clients run: nothing returns here.
  EXPECT_TRUE(cluster_->WaitUntil(SaysNoPath, kPatience));
  serves_on("while the pair is cut");
  EXPECT_TRUE(cluster_->WaitUntil(SaysNoPath, kPatience)) << "it is still cut";
  EXPECT_TRUE(network_->Mend(0, 0).ok());  // Clients run: nothing returns here.
  const int before = served_by_pair;
  EXPECT_TRUE(cluster_->WaitUntil([&](const auto&) { return served_by_pair > before; }, kPatience))
      << "the pair does not come back";
  enough = true;
  for (std::thread& client : clients) client.join();

  ExpectServesAndRests();
}

// With one prefill worker, a decode worker is of no use meanwhile; with two, it has the other.
INSTANTIATE_TEST_SUITE_P(PrefillWorkers, CutPairTest, testing::Values(1, 2),
                         [](const auto& count) { return absl::StrCat(count.param); });

}  // namespace
}  // namespace baton
