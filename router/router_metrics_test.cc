#include "router/router_metrics.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(RouterMetricsTest, HandoffsAreMeasuredAndLocalPrefillsAreNot) {
  MetricsRegistry registry;
  RouterMetrics metrics(&registry);
  Finish local;
  local.finished.mutable_usage()->set_generated_tokens(2);
  Finish handed_off = local;
  handed_off.finished.mutable_timings()->set_transfer_tail_ms(250);

  metrics.OnFinish(local);
  metrics.OnFinish(handed_off);

  const auto histogram =
      registry.AddHistogram(kHandoffSeconds, "", StepSecondsBuckets()).Collect().histogram;
  EXPECT_EQ(histogram.sample_count, 1u);
  EXPECT_DOUBLE_EQ(histogram.sample_sum, 0.25);
}

}  // namespace
}  // namespace baton
