// Who may call the router: a file of keys, read again when it changes.
//
// One key a line: NAME KEY, then "admin" if it may also do what operators do. What follows a # is a
// comment. Only digests of keys are kept, and no key is ever logged.
#ifndef BATON_ROUTER_API_KEYS_H_
#define BATON_ROUTER_API_KEYS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace baton {

// The call's metadata that carries the key: "Bearer KEY".
inline constexpr char kAuthorizationKey[] = "authorization";
inline constexpr char kBearer[] = "Bearer ";
inline constexpr size_t kApiKeyBytesMin = 16;
inline constexpr size_t kApiKeyBytesMax = 512;
inline constexpr size_t kApiKeysMax = 1024;

// Whether `key` can be one: visible ASCII of a length within the limits above. kInvalidArgument,
// without the key.
absl::Status CheckApiKey(const std::string& key);

class ApiKeys {
 public:
  enum class Need { kAnyKey, kAdminKey };

  // kInvalidArgument, naming the file and the line, for one that is malformed, or that others than
  // its owner and group may read.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path);

  // Takes over what has changed if it is in order; else keeps the old keys and logs why, once. Any
  // thread.
  void Reload();

  // The name of the key in `authorization`, a value of the call's metadata; nullopt: it has none,
  // or several. kUnauthenticated: what to send. kPermissionDenied: the key is known and no admin's.
  // Takes the same time for every key. Any thread.
  absl::StatusOr<std::string> Authorize(const std::optional<std::string>& authorization,
                                        Need need) const;

 private:
  using Digest = std::array<uint8_t, 32>;  // SHA-256.
  struct Entry {
    std::string name;
    Digest digest;
    bool admin = false;
  };
  struct Content {
    Digest file;
    std::vector<Entry> entries;
  };

  ApiKeys(std::string path, Content content);
  static Digest DigestOf(const std::string& text);
  static absl::StatusOr<Content> Read(const std::string& path);
  static absl::StatusOr<Content> Parse(const std::string& path, const std::string& text);
  static absl::StatusOr<Entry> ParseLine(const std::string& line);
  static absl::Status CheckNew(const Entry& entry, const std::vector<Entry>& entries);

  const std::string path_;
  mutable absl::Mutex mutex_;
  Content content_ ABSL_GUARDED_BY(mutex_);
  std::string last_error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace baton

#endif  // BATON_ROUTER_API_KEYS_H_
