#include "common/base/secure_random.h"

#include <sys/random.h>

#include "common/base/check.h"

namespace baton {

uint64_t SecureRandom() {
  uint64_t value = 0;
  // Requests of up to 256 bytes are answered whole once the kernel's source is seeded.
  BATON_CHECK(getrandom(&value, sizeof(value), 0) == static_cast<ssize_t>(sizeof(value)));
  return value;
}

Incarnation RandomIncarnation() {
  uint64_t value = SecureRandom();
  while (value == 0) value = SecureRandom();
  return Incarnation{value};
}

}  // namespace baton
