// needle-serve: an OpenAI-compatible server, a page to play with, and a router for MCP. No LibTorch
// in this program.
#include "apps/needle_serve/commands.h"

int main(int argc, char** argv) {
  CLI::App app{"Serve .needle files: an OpenAI-compatible API and a page to play with.",
               "needle-serve"};
  app.require_subcommand(0, 1);
  needle::add_http_server(app);
  needle::add_mcp_command(app);
  return needle::run_command(app, argc, argv);
}
