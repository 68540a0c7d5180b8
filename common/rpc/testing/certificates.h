// Certificates for tests, made when they run: authorities, what these sign, and a folder for them.
#ifndef BATON_COMMON_RPC_TESTING_CERTIFICATES_H_
#define BATON_COMMON_RPC_TESTING_CERTIFICATES_H_

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

namespace baton {

// In PEM.
struct TestIdentity {
  std::string certificate;
  std::string key;
};

struct TestSubject {
  std::string name = "test";           // Common name.
  std::string names = "IP:127.0.0.1";  // As in openssl's subjectAltName; at least one.
  bool expired = false;
};

class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name);

  // The authority's own certificate, in PEM.
  const std::string& certificate() const { return certificate_pem_; }
  TestIdentity Sign(const TestSubject& subject) const;

 private:
  using Key = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;
  using Certificate = std::unique_ptr<X509, void (*)(X509*)>;

  static Key NewKey();
  static Certificate NewCertificate(const std::string& name, EVP_PKEY* key, bool expired);
  static std::string ToPem(X509* certificate);

  const Key key_;
  Certificate certificate_;
  std::string certificate_pem_;
};

// Files of one test, gone with their owner.
class TestFiles {
 public:
  TestFiles();
  ~TestFiles();
  TestFiles(const TestFiles&) = delete;
  TestFiles& operator=(const TestFiles&) = delete;

  // Writes the file in one step, so that no reader sees a part of it, and returns its path. Only
  // the owner may read it.
  std::string Write(const std::string& name, const std::string& text) const;
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

 private:
  std::string folder_;
};

}  // namespace baton

#endif  // BATON_COMMON_RPC_TESTING_CERTIFICATES_H_
