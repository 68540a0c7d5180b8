#include "common/device/device.h"

#include <dlfcn.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

constexpr char kCudaModule[] = "libbaton_cuda.so";
constexpr char kCudaEntry[] = "BatonOpenCudaDevice";

// Opens the GPU that `name` asks for. Returns nullptr and fills `error` (of `error_bytes`) on
// failure.
using OpenCudaDevice = Device* (*)(const char* name, char* error, size_t error_bytes);

absl::StatusOr<std::unique_ptr<Device>> LoadCudaDevice(const std::string& name) {
  void* module = dlopen(kCudaModule, RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("device '", name, "' needs the CUDA module: ", dlerror()));
  }
  const auto open = reinterpret_cast<OpenCudaDevice>(dlsym(module, kCudaEntry));
  if (open == nullptr) {
    return absl::UnavailableError(absl::StrCat(kCudaModule, " has no entry ", kCudaEntry));
  }
  char error[512] = "";
  Device* device = open(name.c_str(), error, sizeof(error));
  if (device == nullptr) return absl::UnavailableError(error);
  return std::unique_ptr<Device>(device);
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  if (device_ != nullptr) device_->Free(data_, bytes_, pinned_);
}

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const std::string& name,
                                                   HostMemoryOptions host) {
  if (name == "cpu") return MakeHostDevice(host);
  if (name == "cuda" || name.rfind("cuda:", 0) == 0) return LoadCudaDevice(name);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown device '", name, "'; choose cpu, cuda or cuda:INDEX"));
}

absl::StatusOr<std::vector<std::unique_ptr<Device>>> OpenDevices(const std::string& name,
                                                                 uint32_t count,
                                                                 HostMemoryOptions host) {
  std::vector<std::unique_ptr<Device>> devices;
  uint32_t index = 0;
  // Any other name is what OpenDevice says it is.
  const bool counted =
      name == "cuda" || (name.rfind("cuda:", 0) == 0 && absl::SimpleAtoi(name.substr(5), &index));
  for (uint32_t i = 0; i < count; ++i) {
    BATON_ASSIGN_OR_RETURN(
        std::unique_ptr<Device> device,
        OpenDevice(counted && i > 0 ? absl::StrCat("cuda:", index + i) : name, host));
    devices.push_back(std::move(device));
  }
  return devices;
}

absl::Status ExplainMemory(const absl::Status& status, const std::string& purpose,
                           const std::string& help) {
  if (!absl::IsResourceExhausted(status)) return status;
  return absl::ResourceExhaustedError(
      absl::StrCat("no memory for ", purpose, ": ", std::string(status.message()), "; ", help));
}

}  // namespace baton
