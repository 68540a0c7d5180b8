#include "common/rpc/grpc_setup.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include "absl/base/call_once.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

// Whatever goes wrong inside gRPC also comes out as a status, which is logged by whoever handles
// it.
void LogFromGrpc(gpr_log_func_args* line) {
  LogDebug("grpc", {{"message", line->message}, {"file", line->file}, {"line", line->line}});
}

}  // namespace

void SetUpGrpc() {
  static absl::once_flag once;
  absl::call_once(once, [] {
    gpr_set_log_function(&LogFromGrpc);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

}  // namespace baton
