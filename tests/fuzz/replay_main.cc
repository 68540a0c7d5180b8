// Stands in for libFuzzer where a target is built without it: runs the target once on every file
// named, or below a folder named, on the command line.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::vector<std::string> FilesOf(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return {path.string()};
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// False: it cannot be read.
bool Replay(const std::string& name) {
  std::ifstream file(name, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) return false;
  // What fails prints why, but not with which input.
  std::printf("%s\n", name.c_str());
  std::fflush(stdout);
  // Of exactly the input's size, so that AddressSanitizer sees a read behind it.
  const std::vector<uint8_t> bytes(content.begin(), content.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  size_t count = 0;
  for (int i = 1; i < argc; ++i) {
    for (const std::string& name : FilesOf(argv[i])) {
      if (!Replay(name)) {
        std::fprintf(stderr, "cannot read %s\n", name.c_str());
        return 1;
      }
      ++count;
    }
  }
  if (count == 0) {
    std::fprintf(stderr, "no inputs: name files, or folders that have some\n");
    return 1;
  }
  std::printf("%zu inputs\n", count);
  return 0;
}
