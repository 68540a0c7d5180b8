// Strong ids: an enum class over an integer cannot be mixed up with another id or with a count.
#ifndef BATON_COMMON_BASE_IDS_H_
#define BATON_COMMON_BASE_IDS_H_

#include <compare>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace baton {

// An index into the model's vocabulary.
using TokenId = int32_t;

// One unit of KV allocation in a worker's pool.
enum class BlockId : uint32_t {};
// Stands where a sequence needs no block any more.
inline constexpr BlockId kNoBlock{0xffffffffu};
// One life of a process; drawn at random at start, never 0.
enum class Incarnation : uint64_t {};
// A router's number for a request; unique within one incarnation of that router.
enum class RequestId : uint64_t {};
// A decode worker's promise of blocks; unique within one incarnation of that worker.
enum class LeaseId : uint64_t {};
// One attempt to fill a lease; starts at 1.
enum class Epoch : uint32_t {};

// The integer behind an id.
template <typename Id>
constexpr auto Raw(Id id) {
  return static_cast<std::underlying_type_t<Id>>(id);
}

// Names a request among all routers that a worker knows.
struct RequestKey {
  Incarnation router{};
  RequestId request{};

  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 sees a null pointer in it.
  friend auto operator<=>(const RequestKey&, const RequestKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const RequestKey& key) {
    return H::combine(std::move(h), Raw(key.router), Raw(key.request));
  }
};

}  // namespace baton

#endif  // BATON_COMMON_BASE_IDS_H_
