// Goal: who stays keeps nothing of those that come and go.
// Method: a decode worker and a router see a hundred prefill workers die, and serve with each; what
// the two hold is looked at in the tenth life and in the last one, at rest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/integration/testing/cluster_streams.h"
#include "tests/support/process_usage.h"

namespace baton {
namespace {

constexpr int kLives = 100 / BATON_TEST_SLOWNESS;
constexpr int kWarmLife = kLives / 10;

// Less than a channel takes (18 KiB), more than the allocator makes of it (4 KiB).
constexpr uint64_t kKibPerLife = 16;

struct Lasting {
  ProcessUsage decode;
  ProcessUsage router;
};

class LivesTest : public ClusterStreamsTest {
 protected:
  // One life of the prefill worker: it serves a prompt that nobody has seen before, and dies.
  void Live(int life) {
    v1::GenerateRequest request = LongRequests()[0];
    request.set_max_tokens(4);
    request.mutable_prompt_ids()->set_ids(0, life);
    const Answer answer = cluster_->Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.finished.prefill_worker(), cluster_->prefill_address(0));
    cluster_->prefill(0).Signal(SIGKILL);
    ASSERT_TRUE(cluster_->prefill(0).Wait(kDeadline).ok());
    ASSERT_TRUE(cluster_->RestartPrefill(0).ok());
    ASSERT_TRUE(cluster_->WaitUntil(
        [](const v1::GetClusterResponse& status) { return Cluster::ReadyCount(status) == 2; }));
  }
  // Connections and buffers are let go of a moment after everything is at rest.
  Lasting Settled() {
    constexpr int kLooks = 5;
    Lasting last;
    int same = 0;
    EXPECT_TRUE(cluster_->WaitUntil([&](const v1::GetClusterResponse& status) {
      const Lasting now = Now();
      const bool as_before = now.decode.files == last.decode.files &&
                             now.router.files == last.router.files && Cluster::AtRest(status);
      same = as_before ? same + 1 : 0;
      last = now;
      return same == kLooks;
    }));
    return last;
  }
  Lasting Now() {
    return {.decode = UsageOf(cluster_->decode(0).pid()),
            .router = UsageOf(cluster_->router().pid())};
  }
};

bool HoldsNoMore(const ProcessUsage& now, const ProcessUsage& warm) {
  // gRPC's executors take their threads one by one when there is much to do, and keep them.
  const auto executors = std::min<uint32_t>(2 * std::thread::hardware_concurrency(),
                                            static_cast<uint32_t>(kLives - kWarmLife) / 2);
  const uint64_t memory_kib = warm.memory_kib + kKibPerLife * (kLives - kWarmLife);
  // The sanitizers keep what was freed.
  const bool memory_counts = BATON_TEST_SLOWNESS == 1;
  return now.files <= warm.files && now.threads <= warm.threads + executors &&
         (!memory_counts || now.memory_kib <= memory_kib);
}

std::string Text(const ProcessUsage& usage) {
  return absl::StrCat(usage.files, " files, ", usage.threads, " threads, ", usage.memory_kib,
                      " KiB");
}

TEST_F(LivesTest, OfAPrefillWorkerLeaveNothingBehind) {
  // So small a cache has been written to everywhere by the time of the first look.
  StartCluster(1, 1, {}, {"--kv_memory=256KiB", "--local_prefill=never"});
  Lasting warm;
  for (int life = 0; life < kLives; ++life) {
    if (life == kWarmLife) {
      warm = Settled();
    }
    ASSERT_NO_FATAL_FAILURE(Live(life)) << "life " << life;
  }

  Lasting end;
  const bool rests = cluster_->WaitUntil([&](const v1::GetClusterResponse& status) {
    end = Now();
    return Cluster::AtRest(status) && HoldsNoMore(end.decode, warm.decode) &&
           HoldsNoMore(end.router, warm.router);
  });
  EXPECT_TRUE(rests) << "decode worker: " << Text(end.decode) << ", was " << Text(warm.decode)
                     << "; router: " << Text(end.router) << ", was " << Text(warm.router);
}

}  // namespace
}  // namespace baton
