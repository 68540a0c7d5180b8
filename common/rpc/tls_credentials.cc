#include "common/rpc/tls_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace baton {
namespace {

// Over gRPC's C interface: the C++ one has no way to replace a server's certificates that checks
// the new ones first.
class TlsServerCredentials final : public grpc::ServerCredentials {
 public:
  explicit TlsServerCredentials(std::shared_ptr<const TlsFiles> files) : files_(std::move(files)) {
    const auto request = files_->checks_peers()
                             ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                             : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, &Fetch, this));
  }
  ~TlsServerCredentials() override { grpc_server_credentials_release(credentials_); }

  // Keys of clients are checked per method: see router/api_keys.h.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // Before each handshake.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<TlsServerCredentials*>(self)->FetchConfig(config);
  }

  grpc_ssl_certificate_config_reload_status FetchConfig(
      grpc_ssl_server_certificate_config** config) {
    std::shared_ptr<const TlsFiles::Texts> texts = files_->texts();
    absl::MutexLock lock(&mutex_);
    if (texts == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {texts->key.c_str(), texts->certificate.c_str()};
    // gRPC 1.51 wants authorities also where no client is asked for a certificate; our own
    // certificate is one nobody uses.
    const std::string& authorities =
        files_->checks_peers() ? texts->authorities : texts->certificate;
    *config = grpc_ssl_server_certificate_config_create(authorities.c_str(), &pair, 1);
    given_ = std::move(texts);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const std::shared_ptr<const TlsFiles> files_;
  grpc_server_credentials* credentials_ = nullptr;
  absl::Mutex mutex_;
  std::shared_ptr<const TlsFiles::Texts> given_ ABSL_GUARDED_BY(mutex_);  // What gRPC has.
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    std::shared_ptr<const TlsFiles> files) {
  return std::make_shared<TlsServerCredentials>(std::move(files));
}

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles* files) {
  if (files == nullptr) return grpc::InsecureChannelCredentials();
  const std::shared_ptr<const TlsFiles::Texts> texts = files->texts();
  return grpc::SslCredentials({.pem_root_certs = texts->authorities,
                               .pem_private_key = texts->key,
                               .pem_cert_chain = texts->certificate});
}

}  // namespace baton
