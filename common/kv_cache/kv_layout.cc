#include "common/kv_cache/kv_layout.h"

#include <xxhash.h>

#include <array>

namespace baton {

uint64_t KvLayout::Fingerprint() const {
  constexpr uint64_t kVersion = 1;  // Raise when the order of the bytes changes.
  const std::array<uint64_t, 6> fields = {kVersion, layers,       kv_heads,
                                          head_dim, block_tokens, static_cast<uint64_t>(dtype)};
  return XXH3_64bits(fields.data(), sizeof(fields));
}

}  // namespace baton
