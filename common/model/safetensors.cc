#include "common/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/base/status_macros.h"
#include "common/model/json_file.h"

namespace baton {
namespace {

constexpr uint64_t kSizeFieldBytes = 8;
constexpr size_t kIndexBytesMax = 64 << 20;

struct TypeInfo {
  const char* name;
  uint64_t bytes;
  std::optional<DType> dtype;
};
// Types of whole bytes. Tensors that no layer asks for may be of any of them.
constexpr TypeInfo kTypes[] = {
    {"F32", 4, DType::kF32},      {"F16", 2, DType::kF16},      {"BF16", 2, DType::kBF16},
    {"I8", 1, DType::kI8},        {"U8", 1, std::nullopt},      {"BOOL", 1, std::nullopt},
    {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt}, {"F8_E8M0", 1, std::nullopt},
    {"I16", 2, std::nullopt},     {"U16", 2, std::nullopt},     {"I32", 4, std::nullopt},
    {"U32", 4, std::nullopt},     {"I64", 8, std::nullopt},     {"U64", 8, std::nullopt},
    {"F64", 8, std::nullopt},     {"C64", 8, std::nullopt},
};

const TypeInfo* FindType(const std::string& name) {
  for (const TypeInfo& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

// Where a tensor's bytes lie, counted from the end of the header.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
  std::string name;
};

absl::Status TensorError(const std::string& file, const std::string& tensor,
                         const std::string& reason) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": tensor '", tensor, "' ", reason));
}

// Reads {"dtype", "shape", "data_offsets"} of one tensor, and checks that they agree with each
// other.
absl::Status ParseEntry(const nlohmann::json& entry, const std::string& file,
                        const std::string& name, StoredTensor* tensor, Extent* extent) {
  if (!entry.is_object()) return TensorError(file, name, "is not described by an object");
  const auto dtype = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return TensorError(file, name, "has no dtype");
  if (shape == entry.end() || !shape->is_array()) return TensorError(file, name, "has no shape");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !offsets->at(0).is_number_unsigned() || !offsets->at(1).is_number_unsigned()) {
    return TensorError(file, name, "has no data_offsets");
  }
  tensor->dtype_name = dtype->get<std::string>();
  const TypeInfo* type = FindType(tensor->dtype_name);
  if (type == nullptr) {
    return TensorError(file, name,
                       absl::StrCat("has the unknown dtype '", tensor->dtype_name, "'"));
  }
  tensor->dtype = type->dtype;
  if (shape->size() > SafetensorsFile::kRankMax) {
    return TensorError(file, name, "has too many dimensions");
  }
  uint64_t bytes = type->bytes;
  for (const nlohmann::json& extent_of_axis : *shape) {
    if (!extent_of_axis.is_number_unsigned()) {
      return TensorError(file, name, "has a shape that is not of whole numbers");
    }
    const uint64_t dim = extent_of_axis.get<uint64_t>();
    tensor->shape.push_back(dim);
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return TensorError(file, name, "is too large");
  }
  extent->begin = offsets->at(0).get<uint64_t>();
  extent->end = offsets->at(1).get<uint64_t>();
  extent->name = name;
  if (extent->begin > extent->end || extent->end - extent->begin != bytes) {
    return TensorError(file, name,
                       absl::StrCat("has data_offsets [", extent->begin, ", ", extent->end,
                                    "), but its shape takes ", bytes, " bytes"));
  }
  return absl::OkStatus();
}

// Tensors must follow each other without a gap and fill the data to its last byte.
absl::Status CheckCoverage(std::vector<Extent> extents, uint64_t data_bytes,
                           const std::string& file) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.end > data_bytes) {
      return TensorError(
          file, extent.name,
          absl::StrCat("ends at byte ", extent.end, " of ", data_bytes, ": the file is truncated"));
    }
    if (extent.begin < covered) return TensorError(file, extent.name, "overlaps another tensor");
    if (extent.begin > covered) return TensorError(file, extent.name, "begins after a gap");
    covered = extent.end;
  }
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", data_bytes - covered, " bytes at the end belong to no tensor"));
  }
  return absl::OkStatus();
}

// Bytes of the header, the size field included.
absl::StatusOr<uint64_t> HeaderBytes(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() < kSizeFieldBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", bytes.size(), " bytes are too few for a safetensors file"));
  }
  uint64_t size = 0;
  for (size_t i = 0; i < kSizeFieldBytes; ++i) {
    size |= static_cast<uint64_t>(std::to_integer<uint8_t>(bytes[i])) << (8 * i);
  }
  if (size > SafetensorsFile::kHeaderBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": a header of ", size, " bytes is too large: no safetensors file"));
  }
  if (size > bytes.size() - kSizeFieldBytes) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": the header takes ", size,
                                                   " bytes, but the file has only ", bytes.size(),
                                                   ": the file is truncated"));
  }
  return size + kSizeFieldBytes;
}

}  // namespace

absl::StatusOr<std::map<std::string, StoredTensor>> SafetensorsFile::Parse(
    std::span<const std::byte> bytes, const std::string& name) {
  BATON_ASSIGN_OR_RETURN(const uint64_t header_bytes, HeaderBytes(bytes, name));
  const absl::string_view text(reinterpret_cast<const char*>(bytes.data()) + kSizeFieldBytes,
                               header_bytes - kSizeFieldBytes);
  BATON_ASSIGN_OR_RETURN(const nlohmann::json json,
                         ParseJsonObject(text, absl::StrCat(name, ": header")));
  const std::span<const std::byte> data = bytes.subspan(header_bytes);
  std::map<std::string, StoredTensor> tensors;
  std::vector<Extent> extents;
  for (const auto& [tensor_name, entry] : json.items()) {
    if (tensor_name == "__metadata__") continue;
    StoredTensor tensor;
    tensor.file = name;
    Extent extent;
    BATON_RETURN_IF_ERROR(ParseEntry(entry, name, tensor_name, &tensor, &extent));
    extents.push_back(extent);
    if (extent.end <= data.size())
      tensor.data = data.subspan(extent.begin, extent.end - extent.begin);
    tensors.emplace(tensor_name, std::move(tensor));
  }
  BATON_RETURN_IF_ERROR(CheckCoverage(std::move(extents), data.size(), name));
  return tensors;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  }
  struct stat info = {};
  const bool regular = fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
  void* mapped = MAP_FAILED;
  if (regular) {
    mapped =
        mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
  }
  close(descriptor);
  if (mapped == MAP_FAILED) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, regular ? ": cannot be mapped" : ": empty or not a regular file"));
  }
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(mapped),
                                         static_cast<size_t>(info.st_size));
  // From here on the destructor unmaps.
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, bytes));
  BATON_ASSIGN_OR_RETURN(file->tensors_, Parse(bytes, path));
  BATON_ASSIGN_OR_RETURN(const uint64_t header_bytes, HeaderBytes(bytes, path));
  file->header_ = bytes.first(header_bytes);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

absl::StatusOr<std::unique_ptr<TensorFiles>> TensorFiles::Open(const std::string& directory) {
  std::unique_ptr<TensorFiles> files(new TensorFiles());
  const std::string index_path = directory + "/model.safetensors.index.json";
  const absl::StatusOr<std::string> index = ReadTextFile(index_path, kIndexBytesMax);
  if (index.ok()) {
    files->source_ = index_path;
    BATON_RETURN_IF_ERROR(files->OpenIndexed(directory, *index));
    return files;
  }
  if (!absl::IsNotFound(index.status())) return index.status();
  files->source_ = directory + "/model.safetensors";
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                         SafetensorsFile::Open(files->source_));
  for (const auto& [name, tensor] : file->tensors()) files->tensors_.emplace(name, &tensor);
  files->files_.push_back(std::move(file));
  return files;
}

absl::Status TensorFiles::OpenIndexed(const std::string& directory, const std::string& index_text) {
  BATON_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(index_text, source_));
  const JsonReader index(json, source_);
  const nlohmann::json* weight_map = index.Find("weight_map");
  if (weight_map == nullptr || !weight_map->is_object()) {
    return index.Error("weight_map", "is not an object");
  }
  std::map<std::string, const SafetensorsFile*> by_name;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string()) return index.Error("weight_map", "has a file name that is no string");
    const std::string file_name = file.get<std::string>();
    // A name, not a path: an index must not lead out of its folder.
    if (file_name.empty() || file_name == ".." || file_name.find('/') != std::string::npos) {
      return index.Error("weight_map", absl::StrCat("has the file name '", file_name, "'"));
    }
    by_name.emplace(file_name, nullptr);
  }
  if (by_name.size() > kFilesMax) return index.Error("weight_map", "names too many files");
  for (auto& [file_name, opened] : by_name) {
    BATON_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                           SafetensorsFile::Open(absl::StrCat(directory, "/", file_name)));
    opened = file.get();
    files_.push_back(std::move(file));
  }
  for (const auto& [tensor, file] : weight_map->items()) {
    const SafetensorsFile* opened = by_name.at(file.get<std::string>());
    const auto found = opened->tensors().find(tensor);
    if (found == opened->tensors().end()) {
      return absl::InvalidArgumentError(absl::StrCat(opened->path(), " has no tensor '", tensor,
                                                     "', although ", source_, " says so"));
    }
    tensors_.emplace(tensor, &found->second);
  }
  return absl::OkStatus();
}

uint64_t TensorFiles::total_bytes() const {
  uint64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor->data.size();
  return total;
}

const StoredTensor* TensorFiles::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

}  // namespace baton
