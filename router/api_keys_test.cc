// Whose keys open the router, and what the others are told.
#include "router/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/rpc/testing/certificates.h"

namespace baton {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using enum ApiKeys::Need;

constexpr char kFirst[] = "first-key-0123456789";
constexpr char kSecond[] = "second-key-0123456789";
constexpr char kThird[] = "third-key-0123456789";

class ApiKeysTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& text) {
    return ApiKeys::Load(files.Write("keys", text));
  }
  // The message of the failure, which must not have a key in it.
  std::string Error(const std::string& text) {
    const auto keys = Load(text);
    EXPECT_FALSE(keys.ok()) << text;
    const std::string message(keys.status().message());
    EXPECT_THAT(message, Not(HasSubstr("0123456789")));
    return message;
  }
  static std::string Bearer(const std::string& key) { return absl::StrCat("Bearer ", key); }

  const TestFiles files;
};

TEST_F(ApiKeysTest, KeysAreKnownByTheirNames) {
  const auto keys = Load(absl::StrCat("# ours\n\nalice ", kFirst, "\n\t bob@x.org \t", kSecond,
                                      " admin # operator\r\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();

  EXPECT_EQ((*keys)->Authorize(Bearer(kFirst), kAnyKey).value_or("nobody"), "alice");
  EXPECT_EQ((*keys)->Authorize(Bearer(kSecond), kAnyKey).value_or("nobody"), "bob@x.org");
  EXPECT_EQ((*keys)->Authorize(Bearer(kSecond), kAdminKey).value_or("nobody"), "bob@x.org");
}

TEST_F(ApiKeysTest, OthersAreToldWhatToSend) {
  const auto keys = Load(absl::StrCat("alice ", kFirst, "\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  const std::string key = kFirst;
  const std::vector<std::optional<std::string>> wrong = {std::nullopt,      "",
                                                         "Bearer ",         key,
                                                         "Badger " + key,   "bearer" + key,
                                                         Bearer(key + "x"), Bearer(key.substr(1)),
                                                         Bearer(key + " "), Bearer("alice"),
                                                         Bearer(kSecond)};

  for (const std::optional<std::string>& authorization : wrong) {
    const auto name = (*keys)->Authorize(authorization, kAnyKey);
    EXPECT_EQ(name.status().code(), absl::StatusCode::kUnauthenticated)
        << authorization.value_or("nothing");
    EXPECT_THAT(std::string(name.status().message()),
                AllOf(HasSubstr("authorization: Bearer KEY"), Not(HasSubstr("0123456789"))));
  }
}

TEST_F(ApiKeysTest, AdminMethodsTakeAnAdminsKey) {
  const auto keys = Load(absl::StrCat("alice ", kFirst, "\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();

  const auto name = (*keys)->Authorize(Bearer(kFirst), kAdminKey);

  EXPECT_EQ(name.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(name.status().message()), HasSubstr("alice"));
  EXPECT_EQ((*keys)->Authorize(Bearer(kSecond), kAdminKey).status().code(),
            absl::StatusCode::kUnauthenticated);
}

TEST_F(ApiKeysTest, MalformedFilesAreRefusedByLine) {
  const std::string good = absl::StrCat("alice ", kFirst, "\n");
  EXPECT_THAT(Error(good + "bob\n"), AllOf(HasSubstr("keys line 2"), HasSubstr("NAME KEY")));
  EXPECT_THAT(Error(absl::StrCat("bob ", kSecond, " root\n")), HasSubstr("NAME KEY admin"));
  EXPECT_THAT(Error(absl::StrCat("bob ", kSecond, " admin x\n")), HasSubstr("line 1"));
  EXPECT_THAT(Error("bob fifteen-letters\n"), HasSubstr("16 to"));
  EXPECT_THAT(Error(absl::StrCat("bob ", std::string(kApiKeyBytesMax + 1, 'x'), "\n")),
              HasSubstr("16 to"));
  EXPECT_THAT(Error(absl::StrCat("bob ", kSecond, "\x01\n")), HasSubstr("visible ASCII"));
  EXPECT_THAT(Error(absl::StrCat("b/b ", kSecond, "\n")), HasSubstr("name"));
  EXPECT_THAT(Error(good + absl::StrCat("alice ", kSecond, "\n")),
              AllOf(HasSubstr("line 2"), HasSubstr("there already")));
  EXPECT_THAT(Error(good + absl::StrCat("bob ", kFirst, "\n")),
              AllOf(HasSubstr("line 2"), HasSubstr("key of bob is also that of alice")));
  EXPECT_THAT(Error("# nobody\n"), HasSubstr("no key"));
  std::string many;
  for (size_t i = 0; i <= kApiKeysMax; ++i) absl::StrAppend(&many, "n", i, " ", kFirst, i, "\n");
  EXPECT_THAT(Error(many), HasSubstr("more than 1024 keys"));
}

TEST_F(ApiKeysTest, FileThatEverybodyMayReadIsRefusedWithTheRemedy) {
  const std::string path = files.Write("keys", absl::StrCat("alice ", kFirst, "\n"));
  std::filesystem::permissions(path, std::filesystem::perms(0644));

  EXPECT_THAT(std::string(ApiKeys::Load(path).status().message()), HasSubstr("chmod o-r " + path));

  std::filesystem::permissions(path, std::filesystem::perms(0640));
  EXPECT_TRUE(ApiKeys::Load(path).ok()) << "a group may";
  EXPECT_THAT(std::string(ApiKeys::Load(files.Path("absent")).status().message()),
              AllOf(HasSubstr("absent"), HasSubstr("No such file")));
}

TEST_F(ApiKeysTest, ReloadTakesGoodFilesAndKeepsTheKeysForBadOnes) {
  const auto loaded = Load(absl::StrCat("alice ", kFirst, "\nbob ", kSecond, "\n"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ApiKeys& keys = **loaded;
  const auto opens = [&keys](const std::string& key) {
    return keys.Authorize(Bearer(key), kAnyKey).ok();
  };

  files.Write("keys", absl::StrCat("bob ", kThird, "\nalice ", kFirst, "\n"));
  EXPECT_FALSE(opens(kThird)) << "nobody has looked yet";
  keys.Reload();
  EXPECT_TRUE(opens(kFirst) && opens(kThird));
  EXPECT_FALSE(opens(kSecond));

  files.Write("keys", absl::StrCat("alice ", kSecond, "\nbob\n"));
  keys.Reload();
  EXPECT_TRUE(opens(kFirst) && opens(kThird));
  EXPECT_FALSE(opens(kSecond));
  const std::string path = files.Write("keys", absl::StrCat("alice ", kSecond, "\n"));
  std::filesystem::permissions(path, std::filesystem::perms(0644));
  keys.Reload();
  EXPECT_FALSE(opens(kSecond));
  std::filesystem::remove(path);
  keys.Reload();
  EXPECT_TRUE(opens(kFirst) && opens(kThird));
  files.Write("keys", absl::StrCat("alice ", kSecond, "\n"));
  keys.Reload();
  EXPECT_TRUE(opens(kSecond));
  EXPECT_FALSE(opens(kFirst));
}

}  // namespace
}  // namespace baton
