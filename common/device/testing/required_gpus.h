// Tests on GPUs skip where there are too few, unless BATON_REQUIRE_GPU says that there are so many.
#ifndef BATON_COMMON_DEVICE_TESTING_REQUIRED_GPUS_H_
#define BATON_COMMON_DEVICE_TESTING_REQUIRED_GPUS_H_

#include <cstdint>
#include <cstdlib>

#include "absl/status/status.h"

namespace baton {

inline uint32_t RequiredGpus() {
  const char* const count = std::getenv("BATON_REQUIRE_GPU");
  return count == nullptr ? 0 : static_cast<uint32_t>(std::strtoul(count, nullptr, 10));
}

// In a test's body or SetUp. `status`: whether `count` GPUs can be used.
#define SKIP_WITHOUT_GPUS(count, status)                           \
  if (const absl::Status opened = (status); !opened.ok()) {        \
    ASSERT_LT(::baton::RequiredGpus(), uint32_t{count}) << opened; \
    GTEST_SKIP() << opened;                                        \
  }

}  // namespace baton

#endif  // BATON_COMMON_DEVICE_TESTING_REQUIRED_GPUS_H_
