#include "common/model/fingerprint.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/model/json_file.h"

namespace baton {
namespace {

constexpr size_t kSampleBytes = 4096;
constexpr size_t kFileBytesMax = 256 << 20;  // A large tokenizer.json has 35 MB.

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    BATON_CHECK(context_ != nullptr);
    BATON_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  // Adds the length, too, so that different sequences of parts never look alike.
  void Add(std::span<const std::byte> part) {
    const uint64_t size = part.size();
    BATON_CHECK(EVP_DigestUpdate(context_.get(), &size, sizeof(size)) == 1);
    BATON_CHECK(EVP_DigestUpdate(context_.get(), part.data(), part.size()) == 1);
  }
  void Add(const std::string& part) { Add(std::as_bytes(std::span(part))); }

  std::string Finish() {
    std::string digest(32, '\0');
    unsigned int size = 0;
    BATON_CHECK(EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()),
                                   &size) == 1);
    BATON_CHECK(size == digest.size());
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

absl::StatusOr<std::string> ModelFingerprint(const std::string& directory,
                                             const TensorFiles& files) {
  Sha256 hash;
  BATON_ASSIGN_OR_RETURN(const std::string config,
                         ReadTextFile(directory + "/config.json", kFileBytesMax));
  hash.Add(config);
  const absl::StatusOr<std::string> tokenizer =
      ReadTextFile(directory + "/tokenizer.json", kFileBytesMax);
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
  hash.Add(tokenizer.ok() ? absl::StrCat("tokenizer", *tokenizer) : std::string("no tokenizer"));
  for (const auto& file : files.files()) {
    hash.Add(file->header());
    for (const auto& [name, tensor] : file->tensors()) {
      const size_t sample = std::min(kSampleBytes, tensor.data.size());
      hash.Add(tensor.data.first(sample));
      hash.Add(tensor.data.last(sample));
    }
  }
  return hash.Finish();
}

}  // namespace baton
