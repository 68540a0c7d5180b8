// Which sets of flags and files are taken, and what those who give others are told.
#include "common/rpc/tls_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <sys/stat.h>

#include <filesystem>

#include "common/rpc/small_file.h"
#include "common/rpc/testing/certificates.h"

namespace baton {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TlsFilesTest : public testing::Test {
 protected:
  // The message of a failure; empty for success.
  static std::string Error(const absl::StatusOr<std::shared_ptr<TlsFiles>>& result) {
    if (result.ok()) return "";
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(result.status().message());
  }
  static std::string ServerError(const std::string& certificate, const std::string& key,
                                 const std::string& authorities) {
    return Error(LoadServerTls({.certificate = {"tls_cert", certificate},
                                .key = {"tls_key", key},
                                .client_authorities = {"tls_client_ca", authorities}}));
  }
  static std::string ClientError(const std::string& authorities, const std::string& certificate,
                                 const std::string& key, const std::string& server_name) {
    return Error(LoadClientTls({.authorities = {"tls_ca", authorities},
                                .certificate = {"tls_client_cert", certificate},
                                .key = {"tls_client_key", key},
                                .server_name = {"tls_server_name", server_name}}));
  }

  const TestAuthority authority{"authority"};
  const TestIdentity identity = authority.Sign({});
  const TestFiles files;
  const std::string ca = files.Write("ca.pem", authority.certificate());
  const std::string cert = files.Write("cert.pem", identity.certificate);
  const std::string key = files.Write("key.pem", identity.key);
};

TEST_F(TlsFilesTest, NoFlagIsPlaintext) {
  const auto server = LoadServerTls({});
  const auto client = LoadClientTls({});

  EXPECT_TRUE(server.ok() && *server == nullptr);
  EXPECT_TRUE(client.ok() && *client == nullptr);
}

TEST_F(TlsFilesTest, HalfASetNamesTheMissingFlag) {
  EXPECT_EQ(ServerError(cert, "", ""), "--tls_cert is given and --tls_key is missing");
  EXPECT_EQ(ServerError("", key, ""), "--tls_key is given and --tls_cert is missing");
  EXPECT_EQ(ServerError("", "", ca), "--tls_client_ca is given and --tls_cert is missing");
  EXPECT_EQ(ClientError(ca, cert, "", ""),
            "--tls_client_cert is given and --tls_client_key is missing");
  EXPECT_EQ(ClientError(ca, "", key, ""),
            "--tls_client_key is given and --tls_client_cert is missing");
  EXPECT_EQ(ClientError("", cert, key, ""), "--tls_client_cert is given and --tls_ca is missing");
  EXPECT_EQ(ClientError("", "", "", "name"), "--tls_server_name is given and --tls_ca is missing");
}

TEST_F(TlsFilesTest, WholeSetsAreTaken) {
  EXPECT_EQ(ServerError(cert, key, ""), "");
  EXPECT_EQ(ServerError(cert, key, ca), "");
  EXPECT_EQ(ClientError(ca, "", "", ""), "");
  EXPECT_EQ(ClientError(ca, cert, key, "name"), "");
}

TEST_F(TlsFilesTest, UnreadableFileIsNamed) {
  EXPECT_THAT(ServerError(files.Path("absent.pem"), key, ""),
              AllOf(HasSubstr("absent.pem"), HasSubstr("No such file")));
  EXPECT_THAT(ServerError(testing::TempDir(), key, ""), HasSubstr("not a file"));
  const std::string huge = files.Write("huge.pem", std::string(kSmallFileBytesMax + 1, 'x'));
  EXPECT_THAT(ServerError(huge, key, ""), AllOf(HasSubstr("huge.pem"), HasSubstr("more than")));
}

TEST_F(TlsFilesTest, PipeIsRefusedAndNotWaitedFor) {
  const std::string pipe = files.Path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);

  EXPECT_THAT(ServerError(pipe, key, ""), HasSubstr("not a file"));
}

TEST_F(TlsFilesTest, MalformedPemIsNamed) {
  const std::string text = files.Write("text.pem", "hello\n");
  const std::string cut =
      files.Write("cut.pem", identity.certificate.substr(0, identity.certificate.size() / 2));
  const std::string garbled =
      files.Write("garbled.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  const std::string cut_key = files.Write("cut_key.pem", identity.key.substr(0, 60));
  const std::string half_list = files.Write(
      "list.pem", authority.certificate() + "\n" + authority.certificate().substr(0, 99));

  EXPECT_THAT(ServerError(text, key, ""), AllOf(HasSubstr(text), HasSubstr("no PEM certificate")));
  EXPECT_THAT(ServerError(cut, key, ""), AllOf(HasSubstr(cut), HasSubstr("malformed")));
  EXPECT_THAT(ServerError(garbled, key, ""), AllOf(HasSubstr(garbled), HasSubstr("malformed")));
  EXPECT_THAT(ServerError(cert, text, ""), AllOf(HasSubstr(text), HasSubstr("no PEM private key")));
  EXPECT_THAT(ServerError(cert, cut_key, ""), AllOf(HasSubstr(cut_key), HasSubstr("malformed")));
  EXPECT_THAT(ServerError(cert, key, half_list),
              AllOf(HasSubstr(half_list), HasSubstr("malformed")));
  EXPECT_THAT(ClientError(text, "", "", ""), HasSubstr(text));
}

TEST_F(TlsFilesTest, KeyOfAnotherCertificateIsRefused) {
  const std::string other = files.Write("other.pem", authority.Sign({}).key);

  EXPECT_THAT(ServerError(cert, other, ""),
              AllOf(HasSubstr(other), HasSubstr("does not belong to " + cert)));
}

TEST_F(TlsFilesTest, KeyThatEverybodyMayReadIsRefused) {
  std::filesystem::permissions(key, std::filesystem::perms::others_read,
                               std::filesystem::perm_options::add);

  EXPECT_THAT(ServerError(cert, key, ""), HasSubstr("chmod o-r " + key));
}

TEST_F(TlsFilesTest, EncryptedKeyIsRefusedWithoutAsking) {
  BIO* in = BIO_new_mem_buf(identity.key.data(), static_cast<int>(identity.key.size()));
  EVP_PKEY* plain = PEM_read_bio_PrivateKey(in, nullptr, nullptr, nullptr);
  BIO* out = BIO_new(BIO_s_mem());
  char password[] = "password";
  ASSERT_EQ(
      PEM_write_bio_PKCS8PrivateKey(out, plain, EVP_aes_256_cbc(), password, 8, nullptr, nullptr),
      1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(out, &data);
  const std::string locked =
      files.Write("locked.pem", std::string(data, static_cast<size_t>(size)));
  BIO_free_all(out);
  EVP_PKEY_free(plain);
  BIO_free_all(in);

  EXPECT_THAT(ServerError(cert, locked, ""), AllOf(HasSubstr(locked), HasSubstr("encrypted")));
}

TEST_F(TlsFilesTest, ReloadTakesAGoodSetAndKeepsTheOldOneForABadOne) {
  const auto loaded = TlsFiles::Load({.certificate = cert, .key = key, .authorities = ca});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  TlsFiles& tls = **loaded;
  const auto first = tls.texts();
  const TestIdentity next = authority.Sign({});

  tls.Reload();
  EXPECT_EQ(tls.texts(), first) << "nothing has changed";

  files.Write("cert.pem", next.certificate);
  tls.Reload();
  EXPECT_EQ(tls.texts(), first) << "the key is still that of the old certificate";
  files.Write("key.pem", next.key);
  tls.Reload();
  EXPECT_EQ(tls.texts()->certificate, next.certificate);
  EXPECT_EQ(tls.texts()->key, next.key);
  EXPECT_EQ(first->certificate, identity.certificate) << "who holds the old ones may go on";

  const auto second = tls.texts();
  files.Write("ca.pem", "");
  tls.Reload();
  EXPECT_EQ(tls.texts(), second);
  std::filesystem::remove(ca);
  tls.Reload();
  EXPECT_EQ(tls.texts(), second);
  const TestAuthority other("other");
  files.Write("ca.pem", other.certificate());
  tls.Reload();
  EXPECT_EQ(tls.texts()->authorities, other.certificate());
}

}  // namespace
}  // namespace baton
