// Rows from an endpoint over https: whose certificate is taken, and what is said of the others.
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/server/endpoint_rows.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Certificate {
  std::filesystem::path certificate;
  std::filesystem::path key;
};

std::string text_of(const std::function<int(BIO*)>& write) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> memory(BIO_new(BIO_s_mem()), &BIO_free);
  EXPECT_EQ(write(memory.get()), 1);
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &bytes);  // NOLINT(google-runtime-int)
  return {bytes, static_cast<std::size_t>(size)};
}

// Signed by itself, for `names` ("IP:127.0.0.1"), until `seconds` from now.
Certificate self_signed(const std::filesystem::path& folder, const char* names, long seconds) {
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"),
                                                                &EVP_PKEY_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), &X509_free);
  X509* const x509 = certificate.get();
  X509_set_version(x509, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(x509), 1);
  X509_gmtime_adj(X509_getm_notBefore(x509), -7200);
  X509_gmtime_adj(X509_getm_notAfter(x509), seconds);
  X509_set_pubkey(x509, key.get());
  X509_NAME_add_entry_by_txt(X509_get_subject_name(x509), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("needle test"), -1, -1, 0);
  X509_set_issuer_name(x509, X509_get_subject_name(x509));
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, names);
  X509_add_ext(x509, extension, -1);
  X509_EXTENSION_free(extension);
  EXPECT_GT(X509_sign(x509, key.get(), EVP_sha256()), 0);
  const Certificate files{.certificate = folder / "certificate.pem", .key = folder / "key.pem"};
  write_file_atomic(files.certificate,
                    text_of([&](BIO* bio) { return PEM_write_bio_X509(bio, x509); }));
  write_file_atomic(files.key, text_of([&](BIO* bio) {
                      return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr,
                                                      nullptr);
                    }));
  return files;
}

// An endpoint on this machine that answers each request with one row.
class TlsEndpointTest : public ::testing::Test {
 protected:
  ~TlsEndpointTest() override {
    if (thread_.joinable()) {
      server_->stop();
      thread_.join();
    }
  }
  void serve(std::unique_ptr<httplib::Server> server) {
    server_ = std::move(server);
    ASSERT_TRUE(server_->is_valid());
    server_->Post("/v1/chat/completions", [this](const httplib::Request& request,
                                                 httplib::Response& response) {
      authorization_ = request.get_header_value("Authorization");
      response.set_content(R"({"choices":[{"message":{"content":"[{\"query\":\"wake me at )" +
                               std::to_string(++asked_) + R"(\",\"answers\":[]}]"}}]})",
                           "application/json");
    });
    port_ = server_->bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_->listen_after_bind(); });
    while (!server_->is_running()) {  // before that, stop() does nothing
      std::this_thread::yield();
    }
  }
  Certificate serve_with(const char* names, long seconds = 3600) {
    const Certificate files = self_signed(folder_.path(), names, seconds);
    serve(std::make_unique<httplib::SSLServer>(files.certificate.c_str(), files.key.c_str()));
    return files;
  }
  // The rows that came, or what was said.
  std::string ask(const std::filesystem::path& ca_file = {}) {
    const EndpointRequest request{.endpoint = {.url = format("https://127.0.0.1:{}/v1", port_),
                                               .model = "big",
                                               .key = "secret",
                                               .ca_file = ca_file},
                                  .tools = parse_tools_text(R"([{"name":"a","parameters":{}}])"),
                                  .count = 2};
    try {
      AtomicFileWriter rows(folder_ / "rows");
      write_endpoint_rows(rows, request);
      rows.commit();
      return read_file(folder_ / "rows");
    } catch (const Error& error) {
      EXPECT_EQ(asked_, 0);
      EXPECT_THAT(error.what(), Not(HasSubstr("secret")));
      return error.what();
    }
  }

  test::TemporaryFolder folder_;
  std::atomic<int> asked_ = 0;
  std::string authorization_;
  std::unique_ptr<httplib::Server> server_;
  int port_ = 0;
  std::thread thread_;
};

// Nothing, the key least of all, is sent to who cannot show a certificate that is trusted.
TEST_F(TlsEndpointTest, WhoSignedForItselfIsRefusedUnlessItsCertificateIsGiven) {
  const Certificate files = serve_with("IP:127.0.0.1");
  EXPECT_THAT(ask(), AllOf(HasSubstr(format("https://127.0.0.1:{}", port_)),
                           HasSubstr("signed by nobody whom this machine trusts"),
                           HasSubstr("--endpoint-ca FILE")));
  EXPECT_EQ(asked_, 0);
  EXPECT_THAT(ask(files.certificate), AllOf(HasSubstr("wake me at 1"), HasSubstr("wake me at 2")));
  EXPECT_EQ(authorization_, "Bearer secret");
}

TEST_F(TlsEndpointTest, AnotherOnesCertificateIsRefused) {
  serve_with("IP:127.0.0.1");
  const std::filesystem::path other = folder_ / "other";
  std::filesystem::create_directory(other);
  EXPECT_THAT(ask(self_signed(other, "IP:127.0.0.1", 3600).certificate),
              HasSubstr("its certificate"));
}

TEST_F(TlsEndpointTest, ACertificateForAnotherHostIsRefused) {
  const Certificate files = serve_with("DNS:endpoint.example");
  EXPECT_THAT(ask(files.certificate), HasSubstr("for another host's name"));
}

TEST_F(TlsEndpointTest, AnExpiredCertificateIsRefused) {
  const Certificate files = serve_with("IP:127.0.0.1", -60);
  EXPECT_THAT(ask(files.certificate), HasSubstr("has expired"));
}

TEST_F(TlsEndpointTest, AnEndpointWithoutTlsIsNamed) {
  serve(std::make_unique<httplib::Server>());
  EXPECT_THAT(ask(), HasSubstr("is its address one of http://?"));
}

TEST_F(TlsEndpointTest, AFileWithoutCertificatesIsNamed) {
  serve_with("IP:127.0.0.1");
  const std::filesystem::path wrong = folder_ / "wrong.pem";
  write_file_atomic(wrong, "no certificate");
  EXPECT_THAT(ask(wrong), AllOf(HasSubstr("wrong.pem"), HasSubstr("PEM form")));
  EXPECT_THROW(check_ca_file(wrong), FormatError);
  EXPECT_THROW(check_ca_file(folder_ / "missing.pem"), FileError);
  EXPECT_NO_THROW(check_ca_file(folder_ / "certificate.pem"));
}

}  // namespace
}  // namespace needle
