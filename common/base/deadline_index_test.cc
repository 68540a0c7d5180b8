#include "common/base/deadline_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace baton {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

Instant At(int64_t count) { return Instant(nanoseconds(count)); }

TEST(DeadlineIndexTest, GivesWhatIsDueTheEarliestFirst) {
  DeadlineIndex<int> index;
  index.Add(At(30), 1);
  index.Add(At(10), 2);
  index.Add(At(20), 3);
  index.Add(kNever, 4);

  EXPECT_THAT(index.Due(At(9)), IsEmpty());
  EXPECT_THAT(index.Due(At(20)), ElementsAre(2, 3));
  EXPECT_THAT(index.Due(At(20)), ElementsAre(2, 3)) << "they stay";
  EXPECT_THAT(index.Due(kNever), ElementsAre(2, 3, 1));
}

TEST(DeadlineIndexTest, ForgetsWhatIsRemoved) {
  DeadlineIndex<int> index;
  index.Add(At(10), 1);
  index.Add(At(10), 2);
  index.Remove(At(10), 1);
  index.Remove(At(10), 3);
  index.Remove(kNever, 2);

  EXPECT_THAT(index.Due(At(10)), ElementsAre(2));
  index.Remove(At(10), 2);
  EXPECT_EQ(index.size(), 0u);
}

// The slow twin looks at everybody.
TEST(DeadlineIndexTest, AgreesWithALookAtAll) {
  std::mt19937 random(1);
  DeadlineIndex<int> index;
  std::map<int, Instant> all;
  for (int i = 0; i < 5000; ++i) {
    const int key = static_cast<int>(random() % 200);
    if (const auto known = all.find(key); known != all.end()) {
      index.Remove(known->second, key);
      all.erase(known);
    } else {
      all[key] = random() % 10 == 0 ? kNever : At(random() % 100);
      index.Add(all[key], key);
    }
    const Instant now = At(random() % 100);
    std::vector<int> due = index.Due(now), expected;
    for (const auto& [other, deadline] : all) {
      if (deadline <= now) expected.push_back(other);
    }
    std::sort(due.begin(), due.end());
    ASSERT_EQ(due, expected);
  }
}

}  // namespace
}  // namespace baton
