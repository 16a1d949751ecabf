#include <csignal>
#include <iostream>
#include <utility>

#include "needle/core/error.h"
#include "needle/server/mcp_router.h"

#include "apps/needle_serve/commands.h"

namespace needle {
namespace {

struct McpCommand {
  ModelOptions models;
  ToolOptions tools;
  McpRouterOptions router;
};

void run(const McpCommand& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a server that ended is an error of its own
  ModelStore models = options.models.open();
  const auto imported = options.tools.import();
  McpRouter router(models, imported->shelf, imported->servers, options.router);
  std::cerr << format("needle-serve: {}; {} tool(s) of {} server(s)\n", greeting(models),
                      imported->shelf.tools().items().size(), imported->servers.size());
  router.run(std::cin, std::cout);
}

}  // namespace

void add_mcp_command(CLI::App& app) {
  const auto options = std::make_shared<McpCommand>();
  CLI::App* mcp = app.add_subcommand(
      "mcp", "Route requests to tools: an MCP server on standard input and output");
  options->models.add_to(*mcp);
  options->tools.add_to(*mcp);
  mcp->add_flag("--forward", options->router.forward,
                "Offer the imported tools themselves, too, and run calls where `execute` asks for "
                "it; without it nothing is ever run");
  mcp->footer(
      "A host starts it with a config like\n"
      "  {\"mcpServers\": {\"needle\": {\"command\": \"needle-serve\", \"args\": [\"mcp\",\n"
      "    \"--model\", \"model.needle\", \"--mcp-config\", \"servers.json\"]}}}\n"
      "and calls its tool `route` with {\"query\": \"wake me at 7\"}.");
  mcp->callback([options] { run(*options); });
}

}  // namespace needle
