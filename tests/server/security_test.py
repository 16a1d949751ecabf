#!/usr/bin/env python3
"""Who may ask needle-serve, what it reaches for, and what it can be tricked into.

usage: security_test.py NEEDLE_SERVE MODEL.needle SLOW.needle
"""
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

from serving import CHAT, TOOLS, Server, chat, clean_environment, http_post, need_models, read_all, run_checks

LISTEN = "0A"


def sockets_of(process):
    """(table, local port, remote port, state) of each internet socket that a process holds."""
    inodes = set()
    for descriptor in pathlib.Path(f"/proc/{process}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
        except FileNotFoundError:
            continue
        if match:
            inodes.add(match.group(1))
    found = []
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"]:
        for line in pathlib.Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                found.append((table, int(fields[1].split(":")[1], 16), int(fields[2].split(":")[1], 16), fields[3]))
    return found


def strange_sockets(process, port):
    """Those that are neither the listening socket nor were accepted from it."""
    return [item for item in sockets_of(process) if item[1] != port or not item[0].startswith("tcp")]


def check_no_connection_of_its_own(program, model, slow):
    """While everything it can do is asked of it, the server holds no socket but its own port's."""
    with tempfile.TemporaryDirectory() as name, Server(program, "-m", model, cwd=name, environment={"HOME": name}) as server:
        seen, done, samples = [], threading.Event(), [0]

        def watch():
            while not done.is_set():
                seen.extend(strange_sockets(server.process.pid, server.port))
                samples[0] += 1

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(5):
            for path in ["/", "/playground.js", "/v1/models", "/v1/tools", "/metrics", "/openapi.json", "/health", "/nothing"]:
                server.ask("GET", path)
            server.post(chat("wake me", n=3, needle={"trace": True}))
            server.ask("POST", CHAT, chat("wake me", stream=True))
            server.ask("POST", CHAT, chat("http://example.com/tools.json", tools=[{"name": "a", "parameters": {"$ref": "http://example.com/schema.json"}}]))
            server.post({"input": "http://example.com"}, "/v1/embeddings")
            server.post({"query": "a", "tools": TOOLS}, "/v1/rank")
        # The watch can see what it looks for: this process does connect.
        with server.connect() as client:
            assert (client.family == socket.AF_INET and
                    any(remote == server.port for _, _, remote, _ in strange_sockets(os.getpid(), server.port)))
            listening = [item for item in sockets_of(server.process.pid) if item[3] == LISTEN]
            assert listening == [("tcp", server.port, 0, LISTEN)], listening
        done.set()
        watcher.join()
        assert not seen and samples[0] > 20, (seen[:3], samples)
        assert list(pathlib.Path(name).iterdir()) == [], "it wrote a file"


def check_loopback_only(program, model, slow):
    """It listens on 127.0.0.1; elsewhere it wants a key or the word."""
    with Server(program, "-m", model) as server:
        lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
        local = [line.split()[1] for line in lines if line.split()[3] == LISTEN and line.split()[1].endswith(f":{server.port:04X}")]
        assert local == [f"0100007F:{server.port:04X}"], local
    for host in ["0.0.0.0", "::"]:
        result = subprocess.run([program, "-m", model, "--host", host, "--port", "0"], capture_output=True, text=True, timeout=60, env=clean_environment())
        assert result.returncode == 2 and "NEEDLE_API_KEY" in result.stderr and "--insecure" in result.stderr, result
    with Server(program, "-m", model, "--host", "0.0.0.0", environment={"NEEDLE_API_KEY": "k"}) as server:
        assert server.ask("GET", "/v1/models")[0].status == 401


def check_key(program, model, slow):
    """With a key every route wants it but those that say nothing of anybody; a preflight has none."""
    with Server(program, "-m", model, environment={"NEEDLE_API_KEY": "sesame-1"}) as server:
        document = json.loads(server.ask("GET", "/openapi.json")[1])
        assert pathlib.Path(f"/proc/{server.process.pid}/cmdline").read_bytes().find(b"sesame") < 0
        for path, methods in document["paths"].items():
            for method, description in methods.items():
                expected = 200 if description.get("security") == [] else 401
                reply, _ = server.ask(method.upper(), path.format(model="model", file="playground.js", job="1", first="0", upload="1"), b"{}" if method == "post" else None)
                assert reply.status == expected, (path, reply.status)
                if expected == 401:
                    assert reply.headers["WWW-Authenticate"] == "Bearer"
        for given, status in [("Bearer sesame-1", 200), ("Bearer sesame-", 401), ("Bearer sesame-11", 401), ("Bearer sesame-1 ", 200), ("bearer", 401),
                              ("Basic c2VzYW1lLTE=", 401), ("Bearer Sesame-1", 401), ("sesame-1", 401)]:
            assert server.ask("GET", "/v1/models", headers={"Authorization": given})[0].status == status, given
        twice = server.raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer no\r\nAuthorization: Bearer sesame-1\r\nConnection: close\r\n\r\n")
        assert b" 401 " in twice, twice


def check_host_and_origin(program, model, slow):
    """DNS rebinding and pages of other origins; CORS only for origins that were named."""
    def status(server, host=None, origin=None, method="GET", path="/v1/models", more=b""):
        lines = [f"{method} {path} HTTP/1.1".encode()]
        lines += [f"Host: {host}".encode()] if host is not None else []
        lines += [f"Origin: {origin}".encode()] if origin is not None else []
        reply = server.raw(b"\r\n".join(lines) + b"\r\n" + more + b"Connection: close\r\n\r\n")
        return int(reply[9:12]), reply

    with Server(program, "-m", model) as server:
        for host in ["localhost", "127.0.0.1", f"localhost:{server.port}", "[::1]:80", "LOCALHOST", "127.1.2.3"]:
            assert status(server, host)[0] == 200, host
        for host in [None, "", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.evil.example", "0.0.0.0", "[::1", "localhost@evil.example"]:
            assert status(server, host)[0] == 403, host
        assert status(server, "localhost", more=b"Host: evil.example\r\n")[0] == 403
        assert status(server, "localhost:1", "http://localhost:1")[0] == 200
        for origin in ["http://evil.example", "null", "http://localhost:2", "https://localhost.evil.example", "file://", "http://localhost:1.evil.example"]:
            code, reply = status(server, "localhost:1", origin)
            assert code == 403 and b"Access-Control" not in reply, origin
            code, reply = status(server, "localhost:1", origin, "OPTIONS", CHAT)
            assert code == 403 and b"Access-Control" not in reply, origin
    with Server(program, "-m", model, "--cors-origin", "https://app.example", "--allow-host", "box.lan") as server:
        code, reply = status(server, "box.lan:99", "https://app.example", "OPTIONS", CHAT)
        assert code == 204 and b"Access-Control-Allow-Origin: https://app.example\r\n" in reply and b"Vary: Origin" in reply, reply
        assert b"Access-Control-Allow-Credentials" not in reply
        reply, _ = server.ask("POST", CHAT, chat("wake me"), {"Origin": "https://app.example"})
        assert reply.status == 200 and reply.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert status(server, "localhost", "https://app.example.evil.example")[0] == 403


def check_paths(program, model, slow):
    """No path leads out: neither a route nor the name of a model."""
    secret = "root:"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, "models")
        folder.mkdir()
        pathlib.Path(folder, "one.needle").write_bytes(pathlib.Path(model).read_bytes())
        pathlib.Path(name, "outside.needle").write_bytes(pathlib.Path(model).read_bytes())
        with Server(program, "--models", str(folder)) as server:
            for path in ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/playground.js/../../etc/passwd", "/..\\..\\etc",
                         "/index.html", "/page/index.html", "/%00", "/etc/passwd%00.js", "file:///etc/passwd", "http://evil.example/", "/v1/models/../../outside",
                         "/v1/models/..%2foutside", "/v1/models/" + name + "/outside", "/v1/models/one.needle", "*"]:
                reply = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                assert reply[9:12] in (b"404", b"400", b"403"), (path, reply)
                assert secret.encode() not in reply
            for wanted in ["../outside", name + "/outside", "outside", "models/one", "one.needle", "./one", "/etc/passwd", "/proc/self/exe", "one\0", "\ud800"]:
                error = server.refused(404, "POST", CHAT, chat("x", model=wanted))
                assert error["code"] == "model_not_found", wanted
            assert server.ask("PUT", "/v1/models/one", b"x")[0].status in (404, 405)
            assert server.ask("DELETE", "/v1/models/one")[0].status in (404, 405)
            assert server.ask("GET", "/v1/models/one")[0].status == 200


def check_framing(program, model, slow):
    """Where a request ends is never in doubt: what is ambiguous is refused and the connection closed."""
    body = json.dumps(chat("wake me")).encode()
    with Server(program, "-m", model) as server:
        def post(head, data):
            return server.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + head + b"\r\n" + data)
        length = b"Content-Length: %d\r\n" % len(body)
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        assert post(length + b"Connection: close\r\n", body).startswith(b"HTTP/1.1 200 ")
        assert post(b"Transfer-Encoding: chunked\r\nConnection: close\r\n", chunked).startswith(b"HTTP/1.1 200 ")
        smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for head in [length + b"Transfer-Encoding: chunked\r\n", length + b"Content-Length: 5\r\n", length + length, b"Content-Length: -1\r\n", b"Content-Length: +5\r\n",
                     b"Content-Length: 5x\r\n", b"Content-Length: 0x5\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: identity\r\n"]:
            reply = post(head, chunked + smuggled)
            assert reply.startswith(b"HTTP/1.1 400 ") and reply.count(b"HTTP/1.1") == 1, (head, reply)
        two = read_all(server.connect(http_post(chat("wake me")) + http_post(chat("wake me")).replace(b"Host:", b"Connection: close\r\nHost:", 1)))
        assert two.count(b"HTTP/1.1 200 ") == 2, two
        injected = server.raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: x\r\n\tfolded: y\r\nConnection: close\r\n\r\n")
        assert injected[9:12] in (b"400", b"403"), injected


def main():
    program, model, slow = sys.argv[1:4]
    need_models([model, slow])
    start = time.monotonic()
    code = run_checks([check_no_connection_of_its_own, check_loopback_only, check_key, check_host_and_origin, check_paths, check_framing],
                      [os.path.abspath(program), model, slow])
    print(f"all in {time.monotonic() - start:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
