// Safetensors files and their index. What is accepted lies within the file, tensor behind tensor,
// each as large as its shape says; and the file that these tensors describe reads the same.
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <tuple>

#include "common/base/check.h"
#include "common/model/safetensors.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/scratch_folder.h"

namespace baton {
namespace {

using Tensors = std::map<std::string, StoredTensor>;

std::string WithHeader(const std::string& header, std::string_view data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
  return file + header + std::string(data);
}

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text));
}

uint64_t ElementCount(const StoredTensor& tensor) {
  uint64_t count = 1;
  for (const uint64_t dim : tensor.shape) count *= dim;
  return count;
}

// Returns where the tensors' bytes begin and how many they are.
std::span<const std::byte> CheckTensors(const Tensors& tensors, std::span<const std::byte> file) {
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    BATON_CHECK(tensor.shape.size() <= SafetensorsFile::kRankMax);
    const uint64_t count = ElementCount(tensor);
    BATON_CHECK(count == 0 ? tensor.data.empty() : tensor.data.size() % count == 0);
    if (tensor.dtype.has_value()) {
      BATON_CHECK(tensor.data.size() == count * DTypeBytes(*tensor.dtype));
    }
    bytes += tensor.data.size();
  }
  BATON_CHECK(bytes <= file.size());
  const auto data = file.last(bytes);
  for (const auto& [name, tensor] : tensors) {
    if (tensor.data.empty()) continue;
    BATON_CHECK(tensor.data.data() >= data.data());
    BATON_CHECK(tensor.data.data() + tensor.data.size() <= data.data() + data.size());
  }
  return data;
}

void CheckFile(const std::string& content) {
  const auto file = BytesOf(content);
  const absl::StatusOr<Tensors> tensors = SafetensorsFile::Parse(file, "input");
  if (!tensors.ok()) return;
  const auto data = CheckTensors(*tensors, file);
  nlohmann::json header = nlohmann::json::object();
  for (const auto& [name, tensor] : *tensors) {
    const size_t begin =
        tensor.data.empty() ? 0 : static_cast<size_t>(tensor.data.data() - data.data());
    header[name] = {{"dtype", tensor.dtype_name},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, begin + tensor.data.size()}}};
  }
  const std::string again =
      WithHeader(header.dump(), {reinterpret_cast<const char*>(data.data()), data.size()});
  const absl::StatusOr<Tensors> reread = SafetensorsFile::Parse(BytesOf(again), "again");
  BATON_CHECK_OK(reread.status());
  BATON_CHECK(reread->size() == tensors->size());
  for (const auto& [name, tensor] : *tensors) {
    const StoredTensor& same = reread->at(name);
    BATON_CHECK(same.shape == tensor.shape && same.dtype_name == tensor.dtype_name);
    BATON_CHECK(
        std::equal(same.data.begin(), same.data.end(), tensor.data.begin(), tensor.data.end()));
  }
}

// A folder with two files, a tensor in each, which the index is about.
const ScratchFolder& Folder() {
  static const ScratchFolder folder;
  static const bool written = [] {
    for (const char* name : {"a", "b"}) {
      const nlohmann::json header = {
          {name, {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {0, 4}}}}};
      folder.Write(std::string(name) + ".safetensors", WithHeader(header.dump(), "1234"));
    }
    return true;
  }();
  BATON_CHECK(written);
  return folder;
}

void CheckIndex(const std::string& index) {
  Folder().Write("model.safetensors.index.json", index);
  const auto files = TensorFiles::Open(Folder().path());
  if (!files.ok()) return;
  BATON_CHECK((*files)->files().size() <= 2);
  uint64_t bytes = 0;
  for (const char* name : {"a", "b"}) {
    if (const StoredTensor* tensor = (*files)->Find(name)) bytes += tensor->data.size();
  }
  BATON_CHECK((*files)->total_bytes() == bytes);
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::FuzzInput input(data, size);
  switch (input.Below(3)) {
    case 0:
      baton::CheckFile(input.Rest());
      break;
    case 1:  // The size of the header is right.
    {
      const std::string header = input.Until('\0');
      baton::CheckFile(baton::WithHeader(header, input.Rest()));
      break;
    }
    case 2:
      baton::CheckIndex(input.Rest());
      break;
  }
  return 0;
}
