#include "common/rpc/testing/certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "common/base/check.h"
#include "common/base/secure_random.h"

namespace baton {
namespace {

constexpr long kDaySeconds = 24 * 60 * 60;

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free_all(bio);
  return text;
}

std::string KeyToPem(EVP_PKEY* key) {
  BIO* bio = BIO_new(BIO_s_mem());
  BATON_CHECK(PEM_write_bio_PKCS8PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  return Text(bio);
}

void AddExtension(X509* certificate, int kind, const std::string& value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str());
  BATON_CHECK(extension != nullptr);
  BATON_CHECK(X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

}  // namespace

TestAuthority::TestAuthority(const std::string& name)
    : key_(NewKey()), certificate_(NewCertificate(name, key_.get(), /*expired=*/false)) {
  X509_set_issuer_name(certificate_.get(), X509_get_subject_name(certificate_.get()));
  AddExtension(certificate_.get(), NID_basic_constraints, "critical,CA:TRUE");
  BATON_CHECK(X509_sign(certificate_.get(), key_.get(), EVP_sha256()) > 0);
  certificate_pem_ = ToPem(certificate_.get());
}

TestIdentity TestAuthority::Sign(const TestSubject& subject) const {
  const Key key = NewKey();
  const Certificate certificate = NewCertificate(subject.name, key.get(), subject.expired);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate_.get()));
  AddExtension(certificate.get(), NID_subject_alt_name, subject.names);
  BATON_CHECK(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0);
  return {.certificate = ToPem(certificate.get()), .key = KeyToPem(key.get())};
}

TestAuthority::Key TestAuthority::NewKey() {
  Key key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  BATON_CHECK(key != nullptr);
  return key;
}

TestAuthority::Certificate TestAuthority::NewCertificate(const std::string& name, EVP_PKEY* key,
                                                         bool expired) {
  Certificate certificate(X509_new(), &X509_free);
  X509_set_version(certificate.get(), X509_VERSION_3);
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate.get()), SecureRandom() >> 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -2 * kDaySeconds);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), (expired ? -1 : 1) * kDaySeconds);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_pubkey(certificate.get(), key);
  return certificate;
}

std::string TestAuthority::ToPem(X509* certificate) {
  BIO* bio = BIO_new(BIO_s_mem());
  BATON_CHECK(PEM_write_bio_X509(bio, certificate) == 1);
  return Text(bio);
}

TestFiles::TestFiles()
    : folder_((std::filesystem::temp_directory_path() / "baton_test_XXXXXX").string()) {
  BATON_CHECK(mkdtemp(folder_.data()) != nullptr);
}

TestFiles::~TestFiles() {
  std::error_code ignored;  // A folder that is left behind harms nobody.
  std::filesystem::remove_all(folder_, ignored);
}

std::string TestFiles::Write(const std::string& name, const std::string& text) const {
  const std::string path = Path(name);
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  const std::string fresh = path + ".new";
  std::ofstream(fresh) << text;
  std::filesystem::permissions(
      fresh, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  std::filesystem::rename(fresh, path);
  return path;
}

}  // namespace baton
