#!/usr/bin/env python3
"""needle-serve and MCP: the router over stdio, tools imported from other servers, both against the official package if it is installed.

usage: mcp_test.py NEEDLE_SERVE MODEL.needle SLOW.needle
"""
import json
import os
import pathlib
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time

from serving import CHAT, Server, clean_environment, need_models, run_checks

PEER = str(pathlib.Path(__file__).with_name("mcp_peer.py"))


def peer(*arguments):
    return shlex.join([sys.executable, PEER, *arguments])


class Router:
    """`needle-serve mcp` as a host sees it."""

    def __init__(self, program, model, *arguments):
        self.process = subprocess.Popen([program, "mcp", "-m", model, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=clean_environment())
        self.replies = queue.Queue()
        self.said = []
        threading.Thread(target=self.listen, daemon=True).start()
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.replies.put(json.loads(line))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            print("the router said:", *self.said, file=sys.stderr)
            self.process.kill()
            return
        self.process.stdin.close()
        assert self.process.wait(20) == 0, self.said

    def send(self, message):
        self.process.stdin.write((message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0", **message})) + "\n")
        self.process.stdin.flush()

    def ask(self, method, params=None, number=1, wait=60):
        self.send({"id": number, "method": method, "params": params or {}})
        reply = self.replies.get(timeout=wait)
        assert reply["id"] == number and reply["jsonrpc"] == "2.0", reply
        return reply

    def call(self, name, **arguments):
        return self.ask("tools/call", {"name": name, "arguments": arguments})["result"]


def check_router(program, model, slow):
    """Greeting, tool list, a text in and checked calls out; nothing is run without --forward."""
    with Router(program, model, "--mcp-server", peer()) as router:
        greeting = router.ask("initialize", {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}})["result"]
        assert greeting["protocolVersion"] == "2025-03-26" and greeting["serverInfo"]["name"] == "needle" and "tools" in greeting["capabilities"]
        assert router.ask("initialize", {"protocolVersion": "3000-01-01"})["result"]["protocolVersion"] == "2025-06-18"
        router.send({"method": "notifications/initialized"})
        assert router.ask("ping", number="text id")["result"] == {}
        tools = router.ask("tools/list")["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["route"] and "execute" not in tools[0]["inputSchema"]["properties"]
        result = router.call("route", query="wake me at 7 am", required=True)
        routed = result["structuredContent"]
        assert json.loads(result["content"][0]["text"]) == routed and result["isError"] is False
        assert routed["calls"][0]["name"] == "set_alarm" and routed["calls"][0]["server"] == pathlib.Path(sys.executable).stem, routed
        assert isinstance(routed["calls"][0]["arguments"]["time"], str) and routed["problems"] == []
        assert 0 < routed["confidence"]["probability"] <= 1
        own = router.call("route", query="lights off", required=True, tools=[{"name": "lights", "inputSchema": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}}])
        call = own["structuredContent"]["calls"][0]
        assert call["name"] == "lights" and isinstance(call["arguments"]["on"], bool) and "server" not in call, call
        for arguments in [{}, {"query": ""}, {"query": 7}, {"query": "x", "execute": True}, {"query": "x", "odd": 1}, {"query": "x", "tools": 7}, {"query": "x" * 100_000}]:
            failed = router.call("route", **arguments)
            assert failed["isError"] and failed["content"][0]["text"], arguments
        assert router.ask("tools/call", {"name": "set_alarm", "arguments": {"time": "7"}})["error"]["code"] == -32602


def check_forward(program, model, slow):
    """--forward: tools of several servers under names of their own, passed on; route can run what it found."""
    with tempfile.TemporaryDirectory() as name:
        config = pathlib.Path(name, "servers.json")
        config.write_text(json.dumps({"mcpServers": {"home": {"command": sys.executable, "args": [PEER], "env": {"X": "y"}},
                                                     "work": {"command": sys.executable, "args": [PEER, "--manner", "noise", "--tools", "2", "--page", "1"]}}}))
        with Router(program, model, "--mcp-config", str(config), "--forward") as router:
            names = [tool["name"] for tool in router.ask("tools/list")["result"]["tools"]]
            assert names == ["route", "set_alarm", "work_set_alarm", "tool_0", "tool_1"], names
            assert router.call("set_alarm", time="7")["content"][0]["text"] == "set_alarm at 7"
            assert router.call("work_set_alarm", time="8")["content"][0]["text"] == "set_alarm at 8"
            done = router.call("route", query="wake me at 7 am", required=True, execute=True)["structuredContent"]
            assert len(done["results"]) == len(done["calls"]) >= 1
            call = done["calls"][0]
            assert call["arguments"]["time"] in done["results"][0]["content"][0]["text"], done
            assert router.ask("tools/call", {"name": "nothing"})["error"]["code"] == -32602


def check_many_tools(program, model, slow):
    """More tools than fit the prompt: the best of them are shown, and how many were not is told."""
    with Router(program, model, "--mcp-server", peer("--tools", "200", "--page", "30")) as router:
        routed = router.call("route", query="wake me", required=True)["structuredContent"]
        assert routed["left_out"] > 0 and len(routed["calls"]) >= 1, routed


def check_cancel_and_nonsense(program, model, slow):
    """A cancelled request has no answer; what is no message gets an error and breaks nothing."""
    long = {"name": "route", "arguments": {"query": "x", "required": True, "tools": [
        {"name": "write", "inputSchema": {"type": "object", "properties": {"a": {"type": "string", "minLength": 400}}, "required": ["a"]}}]}}
    with Router(program, slow) as router:
        start = time.monotonic()
        router.send({"id": 1, "method": "tools/call", "params": long})
        router.send({"id": 2, "method": "tools/call", "params": long})
        time.sleep(0.2)
        assert router.ask("ping", number=3)["result"] == {}  # while it works
        router.send({"method": "notifications/cancelled", "params": {"requestId": 2}})
        router.send({"method": "notifications/cancelled", "params": {"requestId": 1}})
        assert router.ask("tools/list", number=4)["result"]["tools"]
        assert time.monotonic() - start < 10 and router.replies.empty()
        for line, code in [("{", -32700), ("[]", -32600), ("7", -32600), ('{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600), ("[" * 100_000, -32700),
                           ('{"jsonrpc":"2.0","id":1,"method":7}', -32600), ("\ufffd", -32700)]:
            router.send(line)
            assert router.replies.get(timeout=20)["error"]["code"] == code, line[:50]
        assert router.ask("nothing/here")["error"]["code"] == -32601
        for params in [{}, {"name": 7}, {"name": "route", "arguments": []}, {"name": "unknown"}]:
            assert router.ask("tools/call", params)["error"]["code"] == -32602, params
        router.send("")
        router.send({"method": "notifications/whatever"})
        router.send({"id": 9, "result": {}})
        assert router.ask("ping", number=5)["result"] == {}


def check_bad_servers(program, model, slow):
    """A server that is absent, mute, broken or of another time: a message that names it, exit code 1."""
    cases = [(peer("--manner", "mute"), "no answer within"), (peer("--manner", "crash"), "has ended"), (peer("--manner", "error"), "out of order"),
             (peer("--manner", "old"), "1999-01-01"), ("/absent/program", "cannot be started")]
    for command, said in cases:
        for mode in [["mcp"], ["--port", "0"]] if "crash" in command else [["mcp"]]:
            result = subprocess.run([program, *mode, "-m", model, "--mcp-server", command, "--mcp-timeout-ms", "3000"], capture_output=True,
                                    text=True, timeout=60, input="", env=clean_environment())
            assert result.returncode == 1 and said in result.stderr and "MCP server" in result.stderr, (command, result)
    with tempfile.TemporaryDirectory() as name:
        bad = pathlib.Path(name, "bad.json")
        for text in ["{", "{}", '{"mcpServers":{"a":{}}}', '{"mcpServers":{"a":{"command":"b","args":7}}}', '{"mcpServers":{"a":{"url":"http://x"}}}']:
            bad.write_text(text)
            result = subprocess.run([program, "mcp", "-m", model, "--mcp-config", str(bad)], capture_output=True, text=True, timeout=60, input="", env=clean_environment())
            assert result.returncode == 2 and "bad.json" in result.stderr, (text, result)
    with Router(program, model, "--mcp-server", peer("--manner", "slow"), "--forward", "--mcp-timeout-ms", "500") as router:
        late = router.call("set_alarm", time="7")
        assert late["isError"] and "no answer within 500 ms" in late["content"][0]["text"], late


def check_http_import(program, model, slow):
    """--mcp-server of the HTTP server: its tools are listed, and stand in where a request names none."""
    question = {"messages": [{"role": "user", "content": "wake me at 7 am"}], "tool_choice": "required"}
    with Server(program, "-m", model, "--mcp-server", peer("--tools", "200")) as server:
        listed = json.loads(server.ask("GET", "/v1/tools")[1])["data"]
        assert len(listed) == 201 and listed[0]["function"]["name"] == "set_alarm" and "outputSchema" not in listed[0]["function"]
        assert server.post(question)["choices"][0]["message"]["tool_calls"]
        own = server.post({**question, "tools": [{"name": "other"}]})["choices"][0]["message"]["tool_calls"]
        assert own[0]["function"]["name"] == "other"
        named = server.post({**question, "tool_choice": {"type": "function", "function": {"name": "set_alarm"}}})
        assert named["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "set_alarm"
        server.refused(400, "POST", CHAT, {**question, "tools": []})
    with Server(program, "-m", model) as server:
        assert json.loads(server.ask("GET", "/v1/tools")[1])["data"] == []
        server.refused(400, "POST", CHAT, question)


def check_official_package(program, model, slow):
    """The official client against the router, and an official server behind it."""
    try:
        import anyio
        import mcp
        from mcp.client.stdio import StdioServerParameters, stdio_client
    except ImportError:
        print("mcp is not installed: its part is skipped")
        return
    with tempfile.TemporaryDirectory() as name:
        downstream = pathlib.Path(name, "downstream.py")
        downstream.write_text(
            "try:\n    from mcp.server.fastmcp import FastMCP as Server\nexcept ImportError:\n    from mcp.server import MCPServer as Server\n"
            "server = Server('clock')\n\n@server.tool()\ndef set_alarm(time: str) -> str:\n    'Set an alarm'\n    return f'alarm at {time}'\n\nserver.run()\n")
        parameters = StdioServerParameters(command=os.path.abspath(program), args=[
            "mcp", "-m", model, "--forward", "--mcp-server", shlex.join([sys.executable, str(downstream)])], env=clean_environment())

        async def talk():
            async with stdio_client(parameters) as (read, write), mcp.ClientSession(read, write) as session:
                await session.initialize()
                tools = (await session.list_tools()).tools
                assert [tool.name for tool in tools] == ["route", "set_alarm"], tools
                routed = await session.call_tool("route", {"query": "wake me at 7 am", "required": True, "execute": True})
                structured = getattr(routed, "structuredContent", None) or getattr(routed, "structured_content", None)
                assert structured["calls"][0]["name"] == "set_alarm", routed
                assert "alarm at" in structured["results"][0]["content"][0]["text"], structured
                forwarded = await session.call_tool("set_alarm", {"time": "noon"})
                assert forwarded.content[0].text == "alarm at noon", forwarded
        anyio.run(talk)


def main():
    program, model, slow = sys.argv[1:4]
    need_models([model, slow])
    return run_checks([check_router, check_forward, check_many_tools, check_cancel_and_nonsense, check_bad_servers, check_http_import,
                       check_official_package], [program, model, slow])


if __name__ == "__main__":
    sys.exit(main())
