#!/usr/bin/env python3
"""needle-serve when it is full, late, stopped, or its clients are slow or go away.

usage: pressure_test.py NEEDLE_SERVE MODEL.needle SLOW.needle
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time

from serving import CHAT, Server, chat, http_post, need_models, read_all, run_checks

# The slow model has no idea and fills the budget: hundreds of tokens.
LONG = {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": {
    "schema": {"type": "array", "items": {"type": "string", "minLength": 400}, "minItems": 1, "maxItems": 1}}}}


def check_full(program, model, slow):
    """One runs, one waits, the third is told to come again; when both go away, the server is free at once."""
    with Server(program, "-m", slow, "--workers", "1", "--queue", "1") as server:
        running = server.connect(http_post(LONG))
        server.wait_for("needle_running", 1)
        waiting = server.connect(http_post(LONG))
        server.wait_for("needle_waiting", 1)
        reply, text = server.ask("POST", CHAT, LONG)
        error = json.loads(text)["error"]
        assert reply.status == 429 and int(reply.headers["Retry-After"]) >= 1, (reply.status, text)
        assert error["type"] == "rate_limit_error" and error["code"] == "queue_full", error
        for path, body in [("/v1/embeddings", {"input": "a"}), ("/v1/rank", {"query": "a", "tools": [{"name": "b"}]})]:
            assert server.ask("POST", path, body)[0].status == 429, path
        assert server.ask("GET", "/health")[0].status == 200  # asks no model, so it need not wait
        waiting.close()
        server.wait_for("needle_waiting", 0)
        running.close()
        server.wait_for("needle_running", 0)
        assert server.metric("needle_cancelled_total") == 2
        assert server.post(chat("x", max_tokens=40))["object"] == "chat.completion"


def check_gone(program, model, slow):
    """A client that goes away stops the work: in a stream, in a whole answer, while tools are ranked, while texts are embedded."""
    many = [{"name": f"tool_{i}", "description": "word " * 60} for i in range(1000)]
    with Server(program, "-m", slow, "--workers", "1") as server:
        with server.connect(http_post({**LONG, "stream": True})) as streamed:
            read_all(streamed, b"data:")
        server.wait_for("needle_running", 0)
        for path, body in [(CHAT, LONG), (CHAT, {**LONG, "n": 16}), ("/v1/rank", {"query": "a", "tools": many}),
                           ("/v1/embeddings", {"input": ["word " * 60] * 256})]:
            client = server.connect(http_post(body, path))
            server.wait_for("needle_running", 1)
            client.close()
            start = time.monotonic()
            server.wait_for("needle_running", 0)
            assert time.monotonic() - start < 2, path
        assert server.metric("needle_cancelled_total") == 5


def check_late(program, model, slow):
    """The deadline counts from the whole request on, waiting included; a stream that is late says so."""
    with Server(program, "-m", slow, "--workers", "1", "--deadline-ms", "100") as server:
        start = time.monotonic()
        error = server.refused(504, "POST", CHAT, LONG)
        assert error["code"] == "timeout" and time.monotonic() - start < 5, error
        text = server.ask("POST", CHAT, {**LONG, "stream": True})[1].decode()
        assert '"code":"timeout"' in text and "[DONE]" not in text, text
        many = [{"name": f"tool_{i}", "description": "word " * 60} for i in range(1000)]
        server.refused(504, "POST", "/v1/rank", {"query": "a", "tools": many})
        server.refused(504, "POST", "/v1/embeddings", {"input": ["word " * 60] * 256})
    with Server(program, "-m", slow, "--workers", "1", "--queue", "64", "--deadline-ms", "100") as server:
        clients = [server.connect(http_post(LONG)) for _ in range(24)]
        replies = [read_all(client, b"}}") for client in clients]
        assert all(b" 504 " in reply for reply in replies) and sum(b"no turn" in reply for reply in replies) >= 2, replies


def check_slow_clients(program, model, slow):
    """A client that sends a byte now and then holds nothing up, and is told why it is sent away."""
    with Server(program, "-m", model, "--slow-client-ms", "400") as server:
        request = http_post(chat("wake me"))
        head = request[:request.index(b"\r\n\r\n") + 4]
        for sent in [request[:20], head[:-2], head, request[:-1]]:
            start = time.monotonic()
            with server.connect() as client:
                for i in range(0, len(sent), 1 + len(sent) // 3):
                    client.sendall(sent[i:i + 1 + len(sent) // 3])
                    time.sleep(0.05)
                reply = read_all(client)
            assert reply.startswith(b"HTTP/1.1 408 ") and b'"error"' in reply, reply
            assert time.monotonic() - start < 5
        # Dribbling does not help: the whole has a time.
        with server.connect() as client:
            start = time.monotonic()
            try:
                for byte in head + b"{" * 1000:
                    client.sendall(bytes([byte]))
                    time.sleep(0.01)
            except OSError:
                pass
            assert time.monotonic() - start < 5, "a dribbling client was listened to"
        idle = [server.connect() for _ in range(100)]
        assert server.post(chat("wake me"))["choices"]
        for client in idle:
            client.close()


def check_shutdown(program, model, slow):
    """SIGTERM: what runs is answered to its end, what waits gets 503, nobody new is let in, exit code 0."""
    server = Server(program, "-m", slow, "--workers", "1")
    running = server.connect(http_post(LONG))
    streaming = server.connect(http_post({**LONG, "stream": True}))
    server.wait_for("needle_running", 1)
    server.wait_for("needle_waiting", 1)
    server.process.send_signal(signal.SIGTERM)
    replies = [read_all(client) for client in [running, streaming]]
    assert sorted(reply[9:12] for reply in replies) == [b"200", b"503"], replies
    whole = next(reply for reply in replies if reply[9:12] == b"200")
    assert whole.endswith(b"}") or whole.endswith(b"0\r\n\r\n"), whole
    assert server.process.wait(30) == 0
    try:
        server.connect().close()
        raise AssertionError("somebody listens after the end")
    except ConnectionRefusedError:
        pass
    # An idle connection and a second signal do not keep it.
    server = Server(program, "-m", slow, "--workers", "1")
    idle = server.connect()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0
    idle.close()
    server = Server(program, "-m", slow, "--workers", "1")
    running = server.connect(http_post({**LONG, "n": 16}))
    server.wait_for("needle_running", 1)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 130, "a second signal ends it at once"
    running.close()


def check_replaced_model(program, model, slow):
    """The file is replaced, broken and deleted while it serves: every answer is whole, and from one of the two models."""
    with tempfile.TemporaryDirectory() as name:
        served = pathlib.Path(name, "model.needle")
        shutil.copy(model, served)
        with Server(program, "-m", str(served)) as server:
            question = chat("wake me", max_tokens=40)
            first = server.post(question)
            done, failures, seen = threading.Event(), [], set()

            def ask():
                try:
                    while not done.is_set():
                        answer = server.post(question)
                        seen.add(answer["system_fingerprint"])
                        if answer["system_fingerprint"] == first["system_fingerprint"]:
                            assert answer["choices"][0]["message"].get("content") == first["choices"][0]["message"].get("content")
                except Exception as error:  # reported by the main thread
                    failures.append(error)

            clients = [threading.Thread(target=ask) for _ in range(4)]
            for client in clients:
                client.start()
            for i in range(6):
                shutil.copy([slow, model][i % 2], name + "/new")
                os.replace(name + "/new", served)
                time.sleep(0.2)
            shutil.copy(slow, served)  # written over in place, half of it at a time
            time.sleep(0.2)
            done.set()
            for client in clients:
                client.join()
            assert not failures and len(seen) == 2, (failures, seen)
            now = server.post(question)["system_fingerprint"]
            served.write_bytes(b"broken")
            assert server.post(question)["system_fingerprint"] == now
            assert any("old one goes on" in line for line in server.said), server.said
            served.unlink()
            assert server.post(question)["system_fingerprint"] == now


def check_many_connections(program, model, slow):
    """More connections than threads: those beyond get 503, and the rest is served when they are gone."""
    with Server(program, "-m", model) as server:
        clients = []
        refused = 0
        for _ in range(300):
            client = server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.settimeout(10)
            first = client.recv(4096)
            refused += b" 503 " in first
            clients.append(client)
        assert 0 < refused <= 60, refused
        for client in clients:
            client.close()
        until = time.monotonic() + 10
        while server.ask("GET", "/health")[0].status != 200:
            assert time.monotonic() < until


def main():
    program, model, slow = sys.argv[1:4]
    need_models([model, slow])
    socket.setdefaulttimeout(60)
    return run_checks([check_full, check_gone, check_late, check_slow_clients, check_shutdown, check_replaced_model,
                       check_many_connections], [program, model, slow])


if __name__ == "__main__":
    sys.exit(main())
