// Tensors in the safetensors format, mapped into memory: one file, or several with an index.
//
// Files are not trusted: the header's size, depth and every offset are checked before use, tensors
// may neither overlap nor leave the file, and the file may have no bytes that belong to no tensor.
// The format: https://github.com/huggingface/safetensors#format. A file must not be changed while
// it is mapped. Immutable after opening: any thread.
#ifndef BATON_COMMON_MODEL_SAFETENSORS_H_
#define BATON_COMMON_MODEL_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor/dtype.h"

namespace baton {

// One tensor as stored. Borrowed from its file.
struct StoredTensor {
  std::optional<DType> dtype;  // Nothing if it is of a type that weights cannot have.
  std::string dtype_name;      // As the file says: "BF16", "I64".
  std::vector<uint64_t> shape;
  std::span<const std::byte> data;  // Not necessarily aligned.
  std::string file;                 // For messages.
};

// One mapped file.
class SafetensorsFile {
 public:
  static constexpr uint64_t kHeaderBytesMax = 100'000'000;  // As the reference implementation.
  static constexpr size_t kRankMax = 8;

  // kNotFound if there is no such file; kInvalidArgument names the file, the tensor and the fault.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  // Checks `bytes` as if they were a file's; `name` is for messages. They outlive the result.
  static absl::StatusOr<std::map<std::string, StoredTensor>> Parse(std::span<const std::byte> bytes,
                                                                   const std::string& name);

  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  // The size field and the JSON text.
  std::span<const std::byte> header() const { return header_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

 private:
  SafetensorsFile(std::string path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}

  const std::string path_;
  const std::span<const std::byte> bytes_;  // The mapping.
  std::span<const std::byte> header_;
  std::map<std::string, StoredTensor> tensors_;
};

// All tensors of a model's folder.
class TensorFiles {
 public:
  static constexpr size_t kFilesMax = 4096;

  // Opens what model.safetensors.index.json lists, or model.safetensors if there is no index.
  static absl::StatusOr<std::unique_ptr<TensorFiles>> Open(const std::string& directory);

  // Null if no file has it.
  const StoredTensor* Find(const std::string& name) const;
  // By name of file.
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  // Of all tensors.
  uint64_t total_bytes() const;
  // For messages: the index, or the only file.
  const std::string& source() const { return source_; }

 private:
  TensorFiles() = default;
  absl::Status OpenIndexed(const std::string& directory, const std::string& index_text);

  std::string source_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const StoredTensor*> tensors_;
};

}  // namespace baton

#endif  // BATON_COMMON_MODEL_SAFETENSORS_H_
