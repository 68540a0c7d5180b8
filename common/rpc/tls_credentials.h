// gRPC's credentials over TlsFiles.
#ifndef BATON_COMMON_RPC_TLS_CREDENTIALS_H_
#define BATON_COMMON_RPC_TLS_CREDENTIALS_H_

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "common/rpc/tls_files.h"

namespace baton {

// A server's, which looks at `files` at every handshake. Clients must show a certificate if the
// files name authorities. REQUIRES: lives as long as the server that uses it.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    std::shared_ptr<const TlsFiles> files);

// A channel's, with what `files` says now; null: plaintext.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles* files);

}  // namespace baton

#endif  // BATON_COMMON_RPC_TLS_CREDENTIALS_H_
