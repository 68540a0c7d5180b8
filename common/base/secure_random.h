// Numbers that nobody can guess or repeat: incarnations, identities, lease nonces, seeds.
#ifndef BATON_COMMON_BASE_SECURE_RANDOM_H_
#define BATON_COMMON_BASE_SECURE_RANDOM_H_

#include <cstdint>

#include "common/base/ids.h"

namespace baton {

// From the kernel's cryptographic source. Thread-safe.
uint64_t SecureRandom();
// Never 0.
Incarnation RandomIncarnation();

}  // namespace baton

#endif  // BATON_COMMON_BASE_SECURE_RANDOM_H_
