#include "router/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/rpc/small_file.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

constexpr size_t kNameBytesMax = 64;
constexpr char kAdvice[] =
    "send the metadata 'authorization: Bearer KEY' (baton: --api_key_file FILE, or BATON_API_KEY)";

// Wipes a text that held keys.
class Wipe {
 public:
  explicit Wipe(std::string* text) : text_(text) {}
  ~Wipe() { OPENSSL_cleanse(text_->data(), text_->size()); }
  Wipe(const Wipe&) = delete;
  Wipe& operator=(const Wipe&) = delete;

 private:
  std::string* const text_;
};

bool IsName(const std::string& text) {
  return text.size() <= kNameBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-' || c == '@';
         });
}

}  // namespace

absl::Status CheckApiKey(const std::string& key) {
  if (key.size() < kApiKeyBytesMin || key.size() > kApiKeyBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("an API key has ", kApiKeyBytesMin, " to ",
                                                   kApiKeyBytesMax, " characters, this one ",
                                                   key.size()));
  }
  if (!std::all_of(key.begin(), key.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError("an API key is of visible ASCII characters, without spaces");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path) {
  BATON_ASSIGN_OR_RETURN(Content content, Read(path));
  return std::unique_ptr<ApiKeys>(new ApiKeys(path, std::move(content)));
}

ApiKeys::ApiKeys(std::string path, Content content)
    : path_(std::move(path)), content_(std::move(content)) {}

ApiKeys::Digest ApiKeys::DigestOf(const std::string& text) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

absl::StatusOr<ApiKeys::Content> ApiKeys::Read(const std::string& path) {
  BATON_ASSIGN_OR_RETURN(std::string text, ReadSecretFile(path));
  const Wipe wipe(&text);
  return Parse(path, text);
}

absl::StatusOr<ApiKeys::Content> ApiKeys::Parse(const std::string& path, const std::string& text) {
  Content content{.file = DigestOf(text), .entries = {}};
  int number = 0;
  for (const auto view : absl::StrSplit(text, '\n')) {
    ++number;
    std::string line(view.substr(0, view.find('#')));
    const Wipe wipe(&line);
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    absl::StatusOr<Entry> entry = ParseLine(line);
    absl::Status status = entry.status();
    if (status.ok()) status = CheckNew(*entry, content.entries);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " line ", number, ": ", std::string(status.message())));
    }
    content.entries.push_back(*std::move(entry));
  }
  if (content.entries.empty()) return absl::InvalidArgumentError(path + ": there is no key in it");
  return content;
}

absl::StatusOr<ApiKeys::Entry> ApiKeys::ParseLine(const std::string& line) {
  std::vector<std::string> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  if (words.size() < 2 || words.size() > 3 || (words.size() == 3 && words[2] != "admin")) {
    for (std::string& word : words) Wipe{&word};
    return absl::InvalidArgumentError("write NAME KEY, or NAME KEY admin");
  }
  const Wipe wipe(&words[1]);
  if (!IsName(words[0])) {
    return absl::InvalidArgumentError(absl::StrCat("the name is of up to ", kNameBytesMax,
                                                   " letters, digits and the characters . _ - @"));
  }
  BATON_RETURN_IF_ERROR(CheckApiKey(words[1]));
  return Entry{.name = words[0], .digest = DigestOf(words[1]), .admin = words.size() == 3};
}

absl::Status ApiKeys::CheckNew(const Entry& entry, const std::vector<Entry>& entries) {
  if (entries.size() == kApiKeysMax) {
    return absl::InvalidArgumentError(absl::StrCat("there are more than ", kApiKeysMax, " keys"));
  }
  for (const Entry& other : entries) {
    if (other.name == entry.name) {
      return absl::InvalidArgumentError(absl::StrCat("the name ", entry.name, " is there already"));
    }
    if (other.digest == entry.digest) {
      return absl::InvalidArgumentError(
          absl::StrCat("the key of ", entry.name, " is also that of ", other.name));
    }
  }
  return absl::OkStatus();
}

void ApiKeys::Reload() {
  absl::StatusOr<Content> content = Read(path_);
  absl::MutexLock lock(&mutex_);
  if (content.ok()) {
    last_error_.clear();
    if (content->file == content_.file) return;
    content_ = *std::move(content);
    LogInfo("API keys read again", {{"file", path_}, {"keys", content_.entries.size()}});
  } else if (std::string error(content.status().message()); error != last_error_) {
    LogWarning("new API keys refused, the old ones stay", {{"error", error}});
    last_error_ = std::move(error);
  }
}

absl::StatusOr<std::string> ApiKeys::Authorize(const std::optional<std::string>& authorization,
                                               Need need) const {
  const std::string bearer = kBearer;
  if (!authorization.has_value() || !authorization->starts_with(bearer)) {
    return absl::UnauthenticatedError(absl::StrCat("no API key came with the call: ", kAdvice));
  }
  std::string key = authorization->substr(bearer.size());
  const Wipe wipe(&key);
  const Digest digest = DigestOf(key);
  absl::MutexLock lock(&mutex_);
  // Every entry is looked at, whichever matches.
  const Entry* found = nullptr;
  for (const Entry& entry : content_.entries) {
    const bool same = CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0;
    found = same ? &entry : found;
  }
  if (found == nullptr) {
    return absl::UnauthenticatedError(
        absl::StrCat("the router does not know this API key: ", kAdvice));
  }
  if (need == Need::kAdminKey && !found->admin) {
    return absl::PermissionDeniedError(
        absl::StrCat("the API key of ", found->name, " may not do this: it takes an admin's"));
  }
  return found->name;
}

}  // namespace baton
