#include "common/rpc/tls_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/rpc/small_file.h"
#include "common/telemetry/log.h"

namespace baton {
namespace {

template <auto kFree>
struct FreeWith {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Bio = std::unique_ptr<BIO, FreeWith<&BIO_free_all>>;
using Certificate = std::unique_ptr<X509, FreeWith<&X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, FreeWith<&EVP_PKEY_free>>;
using Context = std::unique_ptr<SSL_CTX, FreeWith<&SSL_CTX_free>>;

// What OpenSSL says first about the last failure of this thread.
std::string Reason() {
  const char* reason = ERR_reason_error_string(ERR_peek_error());
  ERR_clear_error();
  return reason == nullptr ? "unknown reason" : reason;
}

absl::Status Bad(const std::string& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

Bio Open(const std::string& text) {
  Bio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  BATON_CHECK(bio != nullptr);
  return bio;
}

// All certificates of a PEM text; at least one.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(const std::string& path,
                                                           const std::string& text) {
  ERR_clear_error();
  const Bio bio = Open(text);
  std::vector<Certificate> certificates;
  while (X509* found = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(found);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (!at_end) return Bad(path, absl::StrCat("a certificate in it is malformed: ", Reason()));
  ERR_clear_error();
  if (certificates.empty()) return Bad(path, "there is no PEM certificate in it");
  return certificates;
}

absl::StatusOr<PrivateKey> ParseKey(const std::string& path, const std::string& text) {
  ERR_clear_error();
  const Bio bio = Open(text);
  bool encrypted = false;
  const auto no_password = [](char*, int, int, void* asked) {
    *static_cast<bool*>(asked) = true;
    return -1;  // Otherwise OpenSSL asks at the terminal.
  };
  PrivateKey key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, &encrypted));
  if (key != nullptr) return key;
  if (encrypted) return Bad(path, "the private key is encrypted; store it without a password");
  if (text.find("PRIVATE KEY-----") == std::string::npos) {
    return Bad(path, "there is no PEM private key in it");
  }
  return Bad(path, absl::StrCat("the private key is malformed: ", Reason()));
}

// As a handshake will: OpenSSL also refuses what is too weak.
absl::Status CheckIdentity(const TlsPaths& paths, const TlsFiles::Texts& texts) {
  BATON_ASSIGN_OR_RETURN(const std::vector<Certificate> chain,
                         ParseCertificates(paths.certificate, texts.certificate));
  BATON_ASSIGN_OR_RETURN(const PrivateKey key, ParseKey(paths.key, texts.key));
  const Context context(SSL_CTX_new(TLS_method()));
  BATON_CHECK(context != nullptr);
  if (SSL_CTX_use_certificate(context.get(), chain.front().get()) != 1) {
    return Bad(paths.certificate, absl::StrCat("the certificate is refused: ", Reason()));
  }
  for (size_t i = 1; i < chain.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context.get(), chain[i].get()) != 1) {
      return Bad(paths.certificate, absl::StrCat("certificate ", i + 1, " is refused: ", Reason()));
    }
  }
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1 ||
      SSL_CTX_check_private_key(context.get()) != 1) {
    return Bad(paths.key,
               absl::StrCat("the key does not belong to ", paths.certificate, ": ", Reason()));
  }
  return absl::OkStatus();
}

absl::StatusOr<TlsFiles::Texts> ReadTexts(const TlsPaths& paths) {
  TlsFiles::Texts texts;
  if (!paths.certificate.empty()) {
    BATON_ASSIGN_OR_RETURN(texts.certificate, ReadSmallFile(paths.certificate));
    BATON_ASSIGN_OR_RETURN(texts.key, ReadSecretFile(paths.key));
  }
  if (!paths.authorities.empty()) {
    BATON_ASSIGN_OR_RETURN(texts.authorities, ReadSmallFile(paths.authorities));
  }
  return texts;
}

absl::Status Check(const TlsPaths& paths, const TlsFiles::Texts& texts) {
  if (!paths.certificate.empty()) BATON_RETURN_IF_ERROR(CheckIdentity(paths, texts));
  if (paths.authorities.empty()) return absl::OkStatus();
  return ParseCertificates(paths.authorities, texts.authorities).status();
}

absl::Status CheckPair(const TlsFlag& one, const TlsFlag& other) {
  if (one.value.empty() || !other.value.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", one.name, " is given and --", other.name, " is missing"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<TlsFiles>> TlsFiles::Load(const TlsPaths& paths) {
  BATON_ASSIGN_OR_RETURN(Texts texts, ReadTexts(paths));
  BATON_RETURN_IF_ERROR(Check(paths, texts));
  return std::shared_ptr<TlsFiles>(
      new TlsFiles(paths, std::make_shared<const Texts>(std::move(texts))));
}

TlsFiles::TlsFiles(TlsPaths paths, std::shared_ptr<const Texts> texts)
    : paths_(std::move(paths)), texts_(std::move(texts)) {}

void TlsFiles::Reload() {
  absl::MutexLock lock(&mutex_);
  absl::StatusOr<Texts> texts = ReadTexts(paths_);
  if (texts.ok() && *texts == *texts_) {
    last_error_.clear();
    return;
  }
  const absl::Status status = texts.ok() ? Check(paths_, *texts) : texts.status();
  if (status.ok()) {
    texts_ = std::make_shared<const Texts>(*std::move(texts));
    last_error_.clear();
    LogInfo("certificates read again",
            {{"certificate", paths_.certificate}, {"authorities", paths_.authorities}});
  } else if (std::string error(status.message()); error != last_error_) {
    LogWarning("new certificates refused, the old ones stay", {{"error", error}});
    last_error_ = std::move(error);
  }
}

std::shared_ptr<const TlsFiles::Texts> TlsFiles::texts() const {
  absl::MutexLock lock(&mutex_);
  return texts_;
}

absl::StatusOr<std::shared_ptr<TlsFiles>> LoadServerTls(const ServerTlsFlags& flags) {
  BATON_RETURN_IF_ERROR(CheckPair(flags.certificate, flags.key));
  BATON_RETURN_IF_ERROR(CheckPair(flags.key, flags.certificate));
  BATON_RETURN_IF_ERROR(CheckPair(flags.client_authorities, flags.certificate));
  if (flags.certificate.value.empty()) return nullptr;
  return TlsFiles::Load({.certificate = flags.certificate.value,
                         .key = flags.key.value,
                         .authorities = flags.client_authorities.value});
}

absl::StatusOr<std::shared_ptr<TlsFiles>> LoadClientTls(const ClientTlsFlags& flags) {
  BATON_RETURN_IF_ERROR(CheckPair(flags.certificate, flags.key));
  BATON_RETURN_IF_ERROR(CheckPair(flags.key, flags.certificate));
  BATON_RETURN_IF_ERROR(CheckPair(flags.certificate, flags.authorities));
  BATON_RETURN_IF_ERROR(CheckPair(flags.server_name, flags.authorities));
  if (flags.authorities.value.empty()) return nullptr;
  return TlsFiles::Load({.certificate = flags.certificate.value,
                         .key = flags.key.value,
                         .authorities = flags.authorities.value});
}

}  // namespace baton
