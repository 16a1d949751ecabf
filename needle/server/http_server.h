// Puts a Service on a port: HTTP/1.1 through cpp-httplib, which stays out of this header.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "needle/server/service.h"

namespace needle {

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // an address or a name to bind to
  int port = 7860;                 // 0: any free one
  std::size_t connections = 256;   // a thread each; beyond that 503
};

class HttpServer {
 public:
  // Keeps a reference to `service`.
  HttpServer(Service& service, HttpServerOptions options);
  ~HttpServer();

  // The port it is bound to. Throws FileError if it cannot be, because another program has it.
  int bind();
  // Serves until stop(); then what is being answered is answered to its end. Needs bind() first.
  void run();
  // From any thread.
  void stop();

  // Serves one connected stream socket until it is closed, and closes it.
  void serve(int socket);

 private:
  class Wire;
  std::unique_ptr<Wire> wire_;
};

}  // namespace needle
