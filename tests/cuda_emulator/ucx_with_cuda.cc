// Loaded ahead of UCX (LD_PRELOAD), makes it one that reaches the memory of emulated GPUs: which is
// memory of the host, but who uses UCX must not know. Stops the process where a UCX that was built
// with CUDA would have to guess: a payload in registered memory without a word about it.
#include <dlfcn.h>
#include <ucp/api/ucp.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

namespace {

struct Region {
  size_t bytes = 0;
  ucp_mem_h handle = nullptr;
};
struct Registered {
  std::mutex mutex;
  std::map<const char*, Region> regions;
};

Registered& All() {
  static auto* const registered = new Registered;
  return *registered;
}

// UCX's own function of this name.
template <typename Function>
Function* Next(const char* name) {
  auto* const next = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
  if (next == nullptr) std::abort();
  return next;
}

// Null: it is in no region.
ucp_mem_h HandleAt(const void* buffer) {
  Registered& all = All();
  const std::lock_guard lock(all.mutex);
  const auto* const at = static_cast<const char*>(buffer);
  auto region = all.regions.upper_bound(at);
  if (region == all.regions.begin()) return nullptr;
  --region;
  return at < region->first + region->second.bytes ? region->second.handle : nullptr;
}

// What UCX is told instead.
ucp_request_param_t OnHost(const void* buffer, const ucp_request_param_t& param) {
  ucp_request_param_t on_host = param;
  const bool is_cuda = (param.op_attr_mask & UCP_OP_ATTR_FIELD_MEMORY_TYPE) != 0 &&
                       param.memory_type == UCS_MEMORY_TYPE_CUDA;
  const bool has_handle = (param.op_attr_mask & UCP_OP_ATTR_FIELD_MEMH) != 0;
  const ucp_mem_h handle = HandleAt(buffer);
  if (is_cuda != (handle != nullptr) || has_handle != is_cuda ||
      (has_handle && param.memh != handle)) {
    std::fprintf(stderr, "emulated UCX: where a payload lies is not what was said\n");
    std::abort();
  }
  if (is_cuda) on_host.memory_type = UCS_MEMORY_TYPE_HOST;
  return on_host;
}

}  // namespace

extern "C" {

// One that takes memory of several GPUs.
void ucp_get_version(unsigned* major, unsigned* minor, unsigned* release) {
  *major = 1;
  *minor = 22;
  *release = 0;
}

ucs_status_t ucp_context_query(ucp_context_h context, ucp_context_attr_t* attributes) {
  static auto* const next = Next<decltype(ucp_context_query)>("ucp_context_query");
  const ucs_status_t status = next(context, attributes);
  attributes->memory_types |= UCS_BIT(UCS_MEMORY_TYPE_CUDA);
  return status;
}

ucs_status_t ucp_mem_map(ucp_context_h context, const ucp_mem_map_params_t* params,
                         ucp_mem_h* handle) {
  static auto* const next = Next<decltype(ucp_mem_map)>("ucp_mem_map");
  ucp_mem_map_params_t on_host = *params;
  const bool is_cuda = (params->field_mask & UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE) != 0 &&
                       params->memory_type == UCS_MEMORY_TYPE_CUDA;
  if (is_cuda) on_host.memory_type = UCS_MEMORY_TYPE_HOST;
  const ucs_status_t status = next(context, &on_host, handle);
  if (!is_cuda || status != UCS_OK) return status;
  Registered& all = All();
  const std::lock_guard lock(all.mutex);
  all.regions[static_cast<const char*>(params->address)] = {params->length, *handle};
  return status;
}

ucs_status_t ucp_mem_unmap(ucp_context_h context, ucp_mem_h handle) {
  static auto* const next = Next<decltype(ucp_mem_unmap)>("ucp_mem_unmap");
  {
    Registered& all = All();
    const std::lock_guard lock(all.mutex);
    std::erase_if(all.regions, [handle](const auto& r) { return r.second.handle == handle; });
  }
  return next(context, handle);
}

ucs_status_ptr_t ucp_am_send_nbx(ucp_ep_h endpoint, unsigned id, const void* header,
                                 size_t header_bytes, const void* buffer, size_t count,
                                 const ucp_request_param_t* param) {
  static auto* const next = Next<decltype(ucp_am_send_nbx)>("ucp_am_send_nbx");
  const ucp_request_param_t on_host = OnHost(buffer, *param);
  return next(endpoint, id, header, header_bytes, buffer, count, &on_host);
}

ucs_status_ptr_t ucp_am_recv_data_nbx(ucp_worker_h worker, void* data, void* buffer, size_t count,
                                      const ucp_request_param_t* param) {
  static auto* const next = Next<decltype(ucp_am_recv_data_nbx)>("ucp_am_recv_data_nbx");
  const ucp_request_param_t on_host = OnHost(buffer, *param);
  return next(worker, data, buffer, count, &on_host);
}

}  // extern "C"
