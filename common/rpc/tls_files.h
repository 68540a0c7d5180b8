// One side's certificates: PEM files that are checked together, and read again when they change.
//
// Whoever owns a process calls Reload now and then; connections made later use what is there then,
// and those that are open go on. See "Encrypted ports" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_RPC_TLS_FILES_H_
#define BATON_COMMON_RPC_TLS_FILES_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"

namespace baton {

// How often a process looks at its files.
inline constexpr Duration kReloadInterval = std::chrono::seconds(1);

struct TlsPaths {
  std::string certificate;  // One's own, then what leads from it to the authority; or none.
  std::string key;          // Of `certificate`.
  std::string authorities;  // Certificates, one of which must have signed the peer's; or none.
};

class TlsFiles {
 public:
  // What the files say, in PEM; empty where there is none.
  struct Texts {
    std::string certificate;
    std::string key;
    std::string authorities;
    bool operator==(const Texts&) const = default;
  };

  // kInvalidArgument, naming the file, when one cannot be read or is not what it should be, or when
  // the key does not belong to the certificate. shared_ptr: those who connect or listen use the
  // files, and whoever calls Reload does.
  static absl::StatusOr<std::shared_ptr<TlsFiles>> Load(const TlsPaths& paths);

  // Takes over what has changed if all of it is in order; else keeps what was there and logs why,
  // once. Any thread.
  void Reload();

  // Never null. Equal pointers have equal texts. Any thread.
  std::shared_ptr<const Texts> texts() const;
  // Whether peers must show a certificate, or are checked at all.
  bool checks_peers() const { return !paths_.authorities.empty(); }

 private:
  TlsFiles(TlsPaths paths, std::shared_ptr<const Texts> texts);

  const TlsPaths paths_;
  mutable absl::Mutex mutex_;
  // shared_ptr: a handshake may be using what a reload replaces.
  std::shared_ptr<const Texts> texts_ ABSL_GUARDED_BY(mutex_);
  std::string last_error_ ABSL_GUARDED_BY(mutex_);
};

// A flag and the file or name that it gives; "" for none.
struct TlsFlag {
  std::string name;
  std::string value;
};

struct ServerTlsFlags {
  TlsFlag certificate;
  TlsFlag key;
  TlsFlag client_authorities;
};
struct ClientTlsFlags {
  TlsFlag authorities;
  TlsFlag certificate;
  TlsFlag key;
  TlsFlag server_name;
};

// Null when none of the flags is given: plaintext. kInvalidArgument, naming the flag that is
// missing, for a part of a set.
absl::StatusOr<std::shared_ptr<TlsFiles>> LoadServerTls(const ServerTlsFlags& flags);
absl::StatusOr<std::shared_ptr<TlsFiles>> LoadClientTls(const ClientTlsFlags& flags);

}  // namespace baton

#endif  // BATON_COMMON_RPC_TLS_FILES_H_
