#include "common/transport/ucx/ucx_handles.h"

#include <ucs/config/global_opts.h>
#include <ucs/memory/memory_type.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/transport/transport.h"

namespace baton {
namespace {

// A lost peer is an event that the callers report, not a page of messages.
void QuietUcxLog() {
  if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
}

// What Baton wants otherwise than UCX's defaults. What the environment says (UCX_<name>) goes
// first.
constexpr int kProgressAfterClose = 4;

struct Setting {
  const char* name;
  const char* value;
  // UCX 1.13 knows a transport's own settings without the transport's prefix, and takes whatever
  // name it is given; later releases know them with it, and refuse what they do not know.
  size_t prefix_bytes = 0;
};
constexpr size_t kTcpPrefix = sizeof("TCP_") - 1;
constexpr Setting kSettings[] = {
    // Over TCP, UCX 1.13 completes a zero-copy fragment twice, and trips over a late
    // acknowledgement of a put, when the peer dies under it: assertion failures in Debian's build,
    // so a dying peer would take this process with it. So payloads travel as active messages,
    // copied into segments that are large enough to cost few system calls. Without puts no peer
    // names addresses in our memory either.
    {"ZCOPY_THRESH", "inf"},
    {"TCP_PUT_ENABLE", "n", kTcpPrefix},
    // The receiver fetches a payload, over transports that can: a put by a sender that has been
    // given up might come late.
    {"RNDV_SCHEME", "get_zcopy"},
    {"TCP_TX_SEG_SIZE", "256k", kTcpPrefix},
    {"TCP_RX_SEG_SIZE", "256k", kTcpPrefix},
    // How soon an idle connection notices that its peer is gone; 20 s by default.
    {"KEEPALIVE_INTERVAL", "1s"},
};
// Left alone, UCX sends over whichever interfaces it found at its start and deems best, a
// container's bridge for instance, and goes on trying when they are gone. Now it takes the one by
// which the connection was made, and that is up to the machine's routes.
constexpr Setting kStayOnTheRoute = {"CM_USE_ALL_DEVICES", "n"};

// Major and minor. Before, copies of all GPUs went through the queue of the first one that was
// used.
using Version = std::pair<unsigned, unsigned>;
constexpr Version kSeveralGpusSince = {1, 19};

Version UcxVersion() {
  Version version;
  unsigned release = 0;
  ucp_get_version(&version.first, &version.second, &release);
  return version;
}

absl::Status Apply(const Setting& setting, ucp_config_t* config) {
  if (std::getenv(absl::StrCat("UCX_", setting.name).c_str()) != nullptr) return absl::OkStatus();
  if (setting.prefix_bytes > 0) {
    static_cast<void>(
        ucp_config_modify(config, setting.name + setting.prefix_bytes, setting.value));
  }
  return UcxStatus(ucp_config_modify(config, setting.name, setting.value),
                   absl::StrCat("setting UCX_", setting.name));
}

// Such a device may be the best way to a peer whose address is another network's.
bool HasRdmaDevices() {
  std::error_code none;
  return std::filesystem::directory_iterator("/sys/class/infiniband", none) !=
         std::filesystem::directory_iterator();
}

absl::Status ApplySettings(ucp_config_t* config) {
  for (const Setting& setting : kSettings) BATON_RETURN_IF_ERROR(Apply(setting, config));
  return HasRdmaDevices() ? absl::OkStatus() : Apply(kStayOnTheRoute, config);
}

}  // namespace

absl::Status UcxStatus(ucs_status_t status, const std::string& what) {
  if (status == UCS_OK) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", ucs_status_string(status));
  if (status == UCS_ERR_CANCELED) return absl::CancelledError(message);
  if (status == UCS_ERR_INVALID_PARAM || status == UCS_ERR_INVALID_ADDR) {
    return absl::InvalidArgumentError(message);
  }
  if (status == UCS_ERR_NO_MEMORY) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create() {
  QuietUcxLog();
  auto worker = absl::WrapUnique(new UcxWorker);
  BATON_RETURN_IF_ERROR(worker->Init());
  return worker;
}

absl::Status UcxWorker::Init() {
  ucp_config_t* config = nullptr;
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_config_read(nullptr, nullptr, &config), "reading the UCX configuration"));
  if (absl::Status set = ApplySettings(config); !set.ok()) {
    ucp_config_release(config);
    return set;
  }
  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "baton";
  const ucs_status_t status = ucp_init(&params, config, &context_);
  ucp_config_release(config);
  if (status != UCS_OK) context_ = nullptr;
  BATON_RETURN_IF_ERROR(UcxStatus(status, "starting UCX"));

  ucp_context_attr_t context_attributes = {};
  context_attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_context_query(context_, &context_attributes), "querying UCX"));
  memory_types_ = context_attributes.memory_types;

  ucp_worker_params_t worker_params = {};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  const ucs_status_t created = ucp_worker_create(context_, &worker_params, &worker_);
  if (created != UCS_OK) worker_ = nullptr;
  BATON_RETURN_IF_ERROR(UcxStatus(created, "creating the UCX worker"));
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_worker_get_efd(worker_, &event_fd_), "asking for the UCX event descriptor"));

  ucp_worker_attr_t attributes = {};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_worker_query(worker_, &attributes), "querying the UCX worker"));
  // One byte more: the message type.
  if (attributes.max_am_header < Transport::kHeaderBytesMax + 1) {
    return absl::UnavailableError(absl::StrCat("UCX takes message headers of ",
                                               attributes.max_am_header, " bytes, ",
                                               Transport::kHeaderBytesMax + 1, " are needed"));
  }
  return absl::OkStatus();
}

absl::Status UcxWorker::UseCudaMemory(uint32_t devices, std::span<const MutableSpan> regions) {
  DropCudaMemory();
  if ((memory_types_ & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) == 0) {
    return absl::UnimplementedError("this UCX moves no memory of GPUs, only " + memory_kinds());
  }
  if (devices > 1 && UcxVersion() < kSeveralGpusSince) {
    return absl::UnimplementedError(absl::StrCat(
        "UCX ", ucp_get_version_string(), " moves memory of one GPU, 1.19 and later of several"));
  }
  for (const MutableSpan& region : regions) {
    ucp_mem_map_params_t params = {};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                        UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
    params.address = region.data();
    params.length = region.size();
    params.memory_type = UCS_MEMORY_TYPE_CUDA;
    CudaMemory memory = {.region = region};
    if (const ucs_status_t status = ucp_mem_map(context_, &params, &memory.handle);
        status != UCS_OK) {
      DropCudaMemory();
      return UcxStatus(status, "registering memory of the GPU with UCX");
    }
    cuda_memory_.push_back(memory);
  }
  return absl::OkStatus();
}

void UcxWorker::DropCudaMemory() {
  for (const CudaMemory& memory : cuda_memory_) ucp_mem_unmap(context_, memory.handle);
  cuda_memory_.clear();
}

ucp_mem_h UcxWorker::CudaMemoryAt(const void* data) const {
  const auto* const at = static_cast<const std::byte*>(data);
  for (const CudaMemory& memory : cuda_memory_) {
    if (at >= memory.region.data() && at < memory.region.data() + memory.region.size()) {
      return memory.handle;
    }
  }
  return nullptr;
}

std::string UcxWorker::memory_kinds() const {
  std::string kinds;
  for (int type = UCS_MEMORY_TYPE_HOST; type < UCS_MEMORY_TYPE_LAST; ++type) {
    if ((memory_types_ & UCS_BIT(type)) == 0) continue;
    absl::StrAppend(&kinds, kinds.empty() ? "" : " ", ucs_memory_type_names[type]);
  }
  return kinds;
}

UcxWorker::~UcxWorker() {
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  DropCudaMemory();
  if (context_ != nullptr) ucp_cleanup(context_);
}

absl::StatusOr<std::unique_ptr<UcxListener>> UcxListener::Create(
    const UcxWorker& worker, const SocketAddress& address, ucp_listener_conn_callback_t wanted,
    void* argument) {
  ucp_listener_params_t params = {};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = {address.get(), address.length};
  params.conn_handler = {wanted, argument};
  ucp_listener_h handle = nullptr;
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_listener_create(worker.get(), &params, &handle), "listening for peers"));
  auto listener = absl::WrapUnique(new UcxListener(handle));
  ucp_listener_attr_t attributes = {};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_listener_query(handle, &attributes), "querying the UCX listener"));
  listener->port_ = PortOf({attributes.sockaddr, sizeof(attributes.sockaddr)});
  return listener;
}

UcxListener::~UcxListener() { ucp_listener_destroy(listener_); }

void UcxListener::Reject(ucp_conn_request_h request) const {
  // An error would say that the requester is gone already.
  static_cast<void>(ucp_listener_reject(listener_, request));
}

absl::StatusOr<UcxEndpoint> UcxEndpoint::Connect(const UcxWorker& worker,
                                                 const SocketAddress& address,
                                                 ucp_err_handler_cb_t failed, void* argument) {
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr = {address.get(), address.length};
  return Create(worker, params, failed, argument);
}

absl::StatusOr<UcxEndpoint> UcxEndpoint::Accept(const UcxWorker& worker, ucp_conn_request_h request,
                                                ucp_err_handler_cb_t failed, void* argument) {
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  return Create(worker, params, failed, argument);
}

absl::StatusOr<UcxEndpoint> UcxEndpoint::Create(const UcxWorker& worker, ucp_ep_params_t params,
                                                ucp_err_handler_cb_t failed, void* argument) {
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {failed, argument};
  ucp_ep_h endpoint = nullptr;
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_ep_create(worker.get(), &params, &endpoint), "connecting to a peer"));
  return UcxEndpoint(worker.get(), endpoint);
}

UcxEndpoint::~UcxEndpoint() {
  if (endpoint_ == nullptr) return;
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint_, &param);
  // A forced close is over at once; if UCX keeps a request all the same, it frees that by itself.
  if (UCS_PTR_IS_PTR(request)) ucp_request_free(request);
  // UCX's own thread keeps events that it could not deliver under the number of their descriptor,
  // and would deliver them to whoever gets that number next. Progress throws them away.
  for (int i = 0; i < kProgressAfterClose; ++i) ucp_worker_progress(worker_);
}

}  // namespace baton
