#include "common/rpc/small_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

class File {
 public:
  // Does not wait for the writer of a pipe.
  explicit File(const std::string& path)
      : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status Unreadable(const std::string& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("cannot read ", path, ": ", why));
}

absl::StatusOr<std::string> ReadAll(const std::string& path, const File& file) {
  std::string text(kSmallFileBytesMax + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = read(file.fd(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Unreadable(path, std::strerror(errno));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kSmallFileBytesMax) {
    return Unreadable(path, absl::StrCat("it has more than ", kSmallFileBytesMax, " bytes"));
  }
  text.resize(size);
  return text;
}

absl::StatusOr<std::string> Read(const std::string& path, bool secret) {
  const File file(path);
  struct stat status = {};
  if (file.fd() < 0 || fstat(file.fd(), &status) != 0) {
    return Unreadable(path, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) return Unreadable(path, "it is not a file");
  if (secret && (status.st_mode & S_IROTH) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " can be read by every user of this machine: chmod o-r ", path));
  }
  return ReadAll(path, file);
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  return Read(path, /*secret=*/false);
}

absl::StatusOr<std::string> ReadSecretFile(const std::string& path) {
  return Read(path, /*secret=*/true);
}

}  // namespace baton
