#include "needle/server/http_text.h"

#include <cstdint>
#include <string>

#include <gtest/gtest.h>

namespace needle {
namespace {

std::optional<RequestHead> parse(const std::string& headers,
                                 const std::string& line = "POST /v1/rank HTTP/1.1") {
  return parse_request_head(line + "\r\n" + headers + "\r\n");
}

TEST(HttpTextTest, ReadsAHead) {
  const auto head = parse("Host: localhost\r\ncontent-length:  12\t\r\nX-Empty:\r\n");
  ASSERT_TRUE(head);
  EXPECT_EQ(head->request.method, "POST");
  EXPECT_EQ(head->request.path, "/v1/rank");
  EXPECT_EQ(head->request.header("HOST"), "localhost");
  EXPECT_EQ(head->request.header("X-Empty"), "");
  EXPECT_EQ(head->request.headers.size(), 3u);
  EXPECT_EQ(head->length, 12u);
  EXPECT_TRUE(head->has_body() && head->keep_alive && head->version_1_1 && !head->chunked);
}

TEST(HttpTextTest, DecodesThePathOnceAndCutsTheQuery) {
  EXPECT_EQ(parse("", "GET /a%2Fb%2520c%zz%4?x=%41 HTTP/1.1")->request.path, "/a/b%20c%zz%4");
  EXPECT_EQ(parse("", "GET /%00 HTTP/1.1")->request.path, std::string("/\0", 2));
  EXPECT_EQ(parse("", "OPTIONS * HTTP/1.1")->request.path, "*");
}

TEST(HttpTextTest, RefusesWhatIsNoHead) {
  for (const std::string line :
       {"", "GET", "GET /", "GET / HTTP/2.0", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET  HTTP/1.1",
        "GET /a b HTTP/1.1", "G(T / HTTP/1.1", "GET /\t HTTP/1.1", "GET /\x7f HTTP/1.1",
        "GET / http/1.1"}) {
    EXPECT_FALSE(parse("", line)) << line;
  }
  EXPECT_TRUE(parse("", "GET / HTTP/1.1"));
  for (const std::string headers : {"Host\r\n", ": x\r\n", "Host : x\r\n", "A: x\r\n folded\r\n",
                                    "A: x\ny: z\r\n", "A: x\rb\r\n", "A b: x\r\n"}) {
    EXPECT_FALSE(parse(headers)) << headers;
  }
  EXPECT_FALSE(parse(std::string("A: \0\r\n", 6)));
  EXPECT_TRUE(parse("A: \xc3\xa9\t\x1bx\r\n"));
}

TEST(HttpTextTest, TakesAsManyHeadersAsAnHonestClientSends) {
  std::string headers;
  for (int i = 0; i < 200; ++i) {
    headers += "h" + std::to_string(i) + ": x\r\n";
  }
  EXPECT_TRUE(parse(headers));
  EXPECT_FALSE(parse(headers + "one-more: x\r\n"));
}

TEST(HttpTextTest, ABodyWhoseEndIsInDoubtHasNoLength) {
  for (const std::string length : {"-1", "+5", "5x", "0x5", "5, 5", "99999999999999999999999"}) {
    const auto head = parse("Content-Length: " + length + "\r\n");
    ASSERT_TRUE(head) << length;
    EXPECT_EQ(head->length, SIZE_MAX) << length;
  }
  EXPECT_EQ(parse("Content-Length: 0\r\nContent-Length: 0\r\n")->length, SIZE_MAX);
  EXPECT_FALSE(parse("Content-Length: 0\r\n")->has_body());
  EXPECT_FALSE(parse("")->has_body());
  EXPECT_TRUE(parse("Transfer-Encoding: gzip\r\n")->has_body());
}

TEST(HttpTextTest, KnowsWhetherTheClientGoesOn) {
  EXPECT_FALSE(parse("Connection: TE, Close\r\n")->keep_alive);
  EXPECT_TRUE(parse("Connection: disclose\r\n")->keep_alive);
  EXPECT_FALSE(parse("", "GET / HTTP/1.0")->keep_alive);
  EXPECT_TRUE(parse("Connection: keep-alive\r\n", "GET / HTTP/1.0")->keep_alive);
  EXPECT_TRUE(parse("Expect: 100-Continue\r\n")->expects_continue);
  EXPECT_FALSE(parse("Expect: 100-continue\r\n", "GET / HTTP/1.0")->expects_continue);
}

TEST(HttpTextTest, WritesAHeadThatOneValueCannotSplit) {
  HttpReply reply{.status = 404, .body = "{}"};
  reply.headers["X-Request-Id"] = "a\r\nSet-Cookie: b";
  EXPECT_EQ(write_reply_head(reply, {.keep_alive_seconds = 30}),
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            "X-Request-Id: a  Set-Cookie: b\r\nKeep-Alive: timeout=30\r\n\r\n");
  EXPECT_EQ(write_reply_head({.status = 204}, {.keep_alive = false}),
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
}

TEST(HttpTextTest, AStreamComesInChunksToAClientThatKnowsThem) {
  HttpReply reply{.content_type = "text/event-stream"};
  reply.stream = [](const HttpReply::Write&) {};
  EXPECT_NE(write_reply_head(reply, {}).find("Transfer-Encoding: chunked"), std::string::npos);
  const std::string old = write_reply_head(reply, {.keep_alive = false, .version_1_1 = false});
  EXPECT_EQ(old.find("chunked"), std::string::npos);
  EXPECT_EQ(old.find("Content-Length"), std::string::npos);
  EXPECT_EQ(write_chunk("0123456789abcdef!"), "11\r\n0123456789abcdef!\r\n");
  EXPECT_EQ(write_chunk(""), "0\r\n\r\n");
}

}  // namespace
}  // namespace needle
