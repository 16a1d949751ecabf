#!/usr/bin/env python3
"""A small MCP server over stdio for tests: tools that answer, in pages, with manners of its own.

usage: mcp_peer.py [--prefix TEXT] [--tools N] [--page N] [--manner good|mute|crash|noise|error|old|slow]
"""
import argparse
import json
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--prefix", default="")
parser.add_argument("--tools", type=int, default=0)
parser.add_argument("--page", type=int, default=100)
parser.add_argument("--manner", default="good")
options = parser.parse_args()

SCHEMA = {"type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]}
TOOLS = [{"name": options.prefix + "set_alarm", "title": "Alarm", "description": "Set an alarm", "inputSchema": SCHEMA,
          "outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": False}}]
TOOLS += [{"name": f"{options.prefix}tool_{i}", "description": "does many different things " * 3, "inputSchema": SCHEMA} for i in range(options.tools)]


def say(message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


if options.manner == "crash":
    sys.exit(3)
if options.manner == "noise":
    print("Welcome to the server!\n{not json", flush=True)
asked = 1000
for line in sys.stdin:
    message = json.loads(line)
    method, number = message.get("method"), message.get("id")
    if number is None or method is None:
        continue
    if options.manner == "mute":
        continue
    if options.manner == "noise":  # what a client must bear: notifications, and requests of the server's own
        say({"method": "notifications/message", "params": {"level": "info", "data": "busy"}})
        say({"id": asked, "method": "ping"})
        assert json.loads(sys.stdin.readline()) == {"jsonrpc": "2.0", "id": asked, "result": {}}
        say({"id": asked + 1, "method": "roots/list"})
        assert json.loads(sys.stdin.readline())["error"]["code"] == -32601
        say({"id": number + 77, "result": {}})
        asked += 2
    if method == "initialize":
        version = "1999-01-01" if options.manner == "old" else message["params"]["protocolVersion"]
        say({"id": number, "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "peer", "version": "1"}}})
    elif options.manner == "error":
        say({"id": number, "error": {"code": -32000, "message": "out of order"}})
    elif method == "tools/list":
        start = int(message.get("params", {}).get("cursor", 0))
        page = {"tools": TOOLS[start:start + options.page]}
        if start + options.page < len(TOOLS):
            page["nextCursor"] = str(start + options.page)
        say({"id": number, "result": page})
    elif method == "tools/call":
        if options.manner == "slow":
            time.sleep(3)
        params = message["params"]
        if params["name"] in [tool["name"] for tool in TOOLS]:
            said = f"{params['name']} at {params['arguments'].get('time')}"
            say({"id": number, "result": {"content": [{"type": "text", "text": said}], "isError": False}})
        else:
            say({"id": number, "error": {"code": -32602, "message": "no such tool"}})
    else:
        say({"id": number, "error": {"code": -32601, "message": "no such method"}})
