// What gRPC keeps per process: its log, health checking and reflection for every server.
#ifndef BATON_COMMON_RPC_GRPC_SETUP_H_
#define BATON_COMMON_RPC_GRPC_SETUP_H_

namespace baton {

// Before the first server or channel is made. Thread-safe; the first call acts.
void SetUpGrpc();

// Warnings about TLS handshakes that failed, a few of many: of a server's, the client hears only
// that the connection was closed. Thread-safe.
void ShowHandshakeFailures();

}  // namespace baton

#endif  // BATON_COMMON_RPC_GRPC_SETUP_H_
