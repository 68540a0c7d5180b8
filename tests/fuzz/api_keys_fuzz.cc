// The router's file of API keys. Of a file that is accepted every key opens the door, under its own
// name and for what its line says; a key that is cut off or bare, a name, or nothing does not.
#include <filesystem>
#include <memory>
#include <sstream>
#include <string>

#include "common/base/check.h"
#include "router/api_keys.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/scratch_folder.h"

namespace baton {
namespace {

using Need = ApiKeys::Need;

void CheckLine(const ApiKeys& keys, const std::string& line) {
  std::string name, key, rights;
  std::istringstream words(line);
  if (!(words >> name >> key)) return;
  words >> rights;
  const absl::StatusOr<std::string> known = keys.Authorize(kBearer + key, Need::kAnyKey);
  BATON_CHECK(known.ok() && *known == name);
  const absl::StatusOr<std::string> admin = keys.Authorize(kBearer + key, Need::kAdminKey);
  BATON_CHECK(admin.ok() == (rights == "admin"));
  BATON_CHECK(!keys.Authorize(key, Need::kAnyKey).ok());
  // Either may be another line's key.
  for (const std::string& other : {key.substr(0, key.size() - 1), name}) {
    if (other == key) continue;
    const absl::StatusOr<std::string> opened = keys.Authorize(kBearer + other, Need::kAnyKey);
    BATON_CHECK(!opened.ok() || *opened != name);
  }
}

void CheckFile(const std::string& text) {
  static const ScratchFolder folder;
  folder.Write("keys", text);
  const std::string path = folder.path() + "/keys";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  const absl::StatusOr<std::unique_ptr<ApiKeys>> keys = ApiKeys::Load(path);
  if (!keys.ok()) return;
  BATON_CHECK(!(*keys)->Authorize(std::nullopt, Need::kAnyKey).ok());
  BATON_CHECK(!(*keys)->Authorize("", Need::kAnyKey).ok());
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    CheckLine(**keys, line.substr(0, line.find('#')));
  }
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::CheckFile(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
