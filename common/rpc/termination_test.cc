#include "common/rpc/termination.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

namespace baton {
namespace {

using std::chrono::milliseconds;

TEST(TerminationTest, SignalsEndTheWait) {
  for (const int signal : {SIGTERM, SIGINT}) {
    TerminationSignal termination;
    EXPECT_FALSE(termination.requested());
    EXPECT_FALSE(termination.WaitFor(milliseconds(1)));

    kill(getpid(), signal);

    termination.Wait();
    EXPECT_TRUE(termination.requested());
    EXPECT_TRUE(termination.WaitFor(Duration::zero()));
  }
}

TEST(TerminationTest, RequestEndsTheWait) {
  TerminationSignal termination;

  termination.Request();

  termination.Wait();
}

TEST(TerminationDeathTest, SecondSignalExitsAtOnce) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        TerminationSignal termination;
        kill(getpid(), SIGTERM);
        termination.Wait();
        kill(getpid(), SIGTERM);
        for (;;) pause();
      },
      testing::ExitedWithCode(128 + SIGTERM), "");
}

TEST(TerminationDeathTest, FirstSignalExitsAtOnceWhereNothingIsLost) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        TerminationSignal termination;
        termination.ExitAtOnce(true);
        kill(getpid(), SIGINT);
        for (;;) pause();
      },
      testing::ExitedWithCode(128 + SIGINT), "");
  TerminationSignal termination;
  termination.ExitAtOnce(true);
  termination.ExitAtOnce(false);
  kill(getpid(), SIGTERM);
  termination.Wait();
}

}  // namespace
}  // namespace baton
