// A folder of this process alone, for targets whose subject opens files by itself.
#ifndef BATON_TESTS_FUZZ_SCRATCH_FOLDER_H_
#define BATON_TESTS_FUZZ_SCRATCH_FOLDER_H_

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "common/base/check.h"

namespace baton {

class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = std::filesystem::temp_directory_path() / "baton_fuzz_XXXXXX";
    BATON_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& content) const {
    std::ofstream file(path_ + "/" + name, std::ios::binary | std::ios::trunc);
    file << content;
    BATON_CHECK_MSG(file.flush().good(), path_);
  }
  void Remove(const std::string& name) const { std::filesystem::remove(path_ + "/" + name); }

 private:
  std::string path_;
};

}  // namespace baton

#endif  // BATON_TESTS_FUZZ_SCRATCH_FOLDER_H_
