// What two workers compare to know that they run the same model. Any thread.
#ifndef BATON_COMMON_MODEL_FINGERPRINT_H_
#define BATON_COMMON_MODEL_FINGERPRINT_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/model/safetensors.h"

namespace baton {

// SHA-256 over config.json, tokenizer.json (if there is one), the headers of the safetensors files,
// and the first and last 4 KiB of each tensor. 32 bytes.
absl::StatusOr<std::string> ModelFingerprint(const std::string& directory,
                                             const TensorFiles& files);

}  // namespace baton

#endif  // BATON_COMMON_MODEL_FINGERPRINT_H_
