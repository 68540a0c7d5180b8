#include "router/router_metrics.h"

#include <gtest/gtest.h>

#include "router/core_driver.h"

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

TEST(RouterMetricsTest, PausesWithinAStreamAreMeasured) {
  MetricsRegistry registry;
  RouterMetrics metrics(&registry);

  Emit emit;
  metrics.OnEmit(emit);  // The first of its stream.
  for (const int pause : {20, 480}) {
    emit.pause = std::chrono::milliseconds(pause);
    metrics.OnEmit(emit);
  }

  const auto histogram = registry.AddHistogram(kInterTokenLatencySeconds, "", StepSecondsBuckets())
                             .Collect()
                             .histogram;
  EXPECT_EQ(histogram.sample_count, 2u);
  EXPECT_DOUBLE_EQ(histogram.sample_sum, 0.5);
}

TEST(RouterMetricsTest, PairsShowWhatTheirLastProbeMeasured) {
  CoreDriver driver;
  const WorkerId prefill = driver.AddUp(v1::ROLE_PREFILL);
  const WorkerId decode = driver.AddUp(v1::ROLE_DECODE);
  MetricsRegistry registry;
  RouterMetrics metrics(&registry);
  const MetricLabels labels = {{"from", driver.core.workers().Find(prefill)->address},
                               {"to", driver.core.workers().Find(decode)->address}};
  const auto measured = [&] {
    metrics.Update(driver.core);
    return registry.AddGauge(kPairBytesPerSecond, "", labels).Value();
  };
  EXPECT_EQ(measured(), 0) << "not probed yet";

  v1::Event answer;
  answer.mutable_probe_result()->set_probe(driver.Next(prefill).probe().probe());
  answer.mutable_probe_result()->set_ok(true);
  answer.mutable_probe_result()->set_bytes_per_second(2.5e9);
  driver.Event(prefill, answer);
  EXPECT_EQ(measured(), 2.5e9);

  driver.Down(decode);
  EXPECT_EQ(measured(), 0) << "this pair is not there any more";
}

}  // namespace
}  // namespace baton
