#!/usr/bin/env python3
"""Sends needle-serve requests that are almost right, and checks that it stays up, right and tidy.

usage: fuzz.py [--bin build/release/bin] [--model FILE.needle] [--seconds 60] [--seed 1] [--clients 4] [--keep FOLDER]

Three kinds: valid requests whose JSON is changed (other types, missing and doubled fields, depth, odd numbers and texts), whose bytes
are changed (flipped, cut, spliced, doubled), and whose framing is (lengths, chunks, pauses, pipelining). Checked:
  - a changed JSON body gets a whole HTTP reply, never 500, and errors have OpenAI's shape;
  - every 25 requests the same question gets the same answer as at the start, so that nothing leaks from one request into another;
  - at the end nothing runs or waits, no socket is left, memory has not grown by more than 64 MB, and SIGTERM ends it with exit code 0.
Without --model: the tests' small trained model. Exit code 1 if a check fails; the input lies then in --keep.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/server"))
from serving import CHAT, TOOLS, Server, chat, http_post, read_all  # noqa: E402

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"enum": [1, "x", None]}}, "required": ["a"]}
VALUE = {"type": "json_schema", "json_schema": {"name": "v", "schema": SCHEMA}}
VALID = [
    (CHAT, chat("wake me at 7 am", tool_choice="required", max_tokens=60)),
    (CHAT, chat("wake me", stream=True, stream_options={"include_usage": True}, stop=["x", "y"], max_tokens=60)),
    (CHAT, chat("wake me", n=2, seed=1, needle={"confidence": True, "trace": True}, max_tokens=60)),
    (CHAT, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}], "response_format": VALUE, "max_tokens": 60}),
    (CHAT, chat("x", tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "setAlarm"}}]}}, max_tokens=60)),
    (CHAT, chat("x", tools=[{"name": "a", "parameters": SCHEMA, "strict": True}], parallel_tool_calls=False, max_tokens=60)),
    ("/v1/embeddings", {"input": ["a", "b c"], "encoding_format": "base64"}),
    ("/v1/embeddings", {"input": [5, 6, 7], "dimensions": 16}),
    ("/v1/rank", {"query": "alarm", "tools": TOOLS, "top_k": 1}),
]
ODD = [None, True, False, 0, -1, 1, 2**63, -2**63, 10**30, 1e308, -0.0, 0.5, "", " ", "x", "x" * 5000, "\0", "\ud800", "é\u202e🎉", "<tools>", "<tool_call>", "</s>", "a\nb", [], {}, [[]],
       [None], {"": ""}, {"name": "a"}, {"type": "function"}, {"type": "string"}, {"$ref": "#"}, {"$ref": "#/x"}, {"type": "object", "properties": {"x": {"$ref": "#"}}},
       {"type": ["string", "null"], "pattern": "(a|b)*c{1,200}"}, {"anyOf": [{}, {"not": {}}]}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"minLength": 9, "maxLength": 1},
       {"enum": []}, {"const": {"a": [1, 2, {"b": None}]}}, {"type": "array", "minItems": 100000}, {"type": "integer", "multipleOf": 0}, {"format": "date-time", "type": "string"}]


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], path + (key,))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], path + (i,))


def changed(value, path, change):
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], change)
    return copy


def deep(noise, value):
    for _ in range(noise.choice([1, 10, 100, 190, 210])):
        value = [value] if noise.random() < 0.5 else {"a": value}
    return value


def changed_json(noise, value):
    """JSON text of a value with one to four changes."""
    for _ in range(noise.randrange(1, 5)):
        path = noise.choice(list(places(value)))
        kind = noise.randrange(6)
        if kind < 3:
            value = changed(value, path, lambda _: noise.choice(ODD))
        elif kind == 3:
            value = changed(value, path, lambda old: deep(noise, old))
        elif kind == 4:
            def shuffle(old):
                if isinstance(old, dict) and old:
                    kept = {key: item for key, item in old.items() if noise.random() < 0.7}
                    return {**kept, noise.choice(["odd", "type", "name", "properties", "items", "tools", "n"]): noise.choice(ODD)}
                return old * noise.choice([0, 2, 50]) if isinstance(old, (list, str)) and len(json.dumps(old)) < 5000 else noise.choice(ODD)
            value = changed(value, path, shuffle)
        else:
            value = changed(value, path, lambda old: [old, noise.choice(ODD)])
    text = json.dumps(value, ensure_ascii=noise.random() < 0.5).encode("utf-8", "surrogatepass")
    if noise.random() < 0.1 and text.startswith(b"{"):  # a field twice
        text = text[:-1] + b"," + text[1:]
    return text[:900_000]


def changed_bytes(noise, data, other):
    data = bytearray(data)
    for _ in range(noise.randrange(1, 6)):
        at, kind = noise.randrange(len(data) + 1), noise.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << noise.randrange(8)
        elif kind == 1:
            data[at:at + noise.randrange(20)] = b""
        elif kind == 2:
            data[at:at] = noise.randbytes(noise.randrange(1, 20))
        elif kind == 3:
            data[at:] = other[noise.randrange(len(other)):]
        elif kind == 4:
            data[at:at] = data[at:at + noise.randrange(200)]
        else:
            data[at:at] = noise.choice([b"\r\n", b"\r\n\r\n", b"\0", b"%00", b"0\r\n\r\n", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"99999999999999999999", b"-1"])
    return bytes(data) or b"\r\n\r\n"


def changed_framing(noise, path, body):
    """Pieces to send one after another."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    kind = noise.randrange(5)
    if kind == 0:
        length = noise.choice([0, 1, len(body) - 1, len(body) + 1, len(body) + 9, 10**7, 10**20, -1])
        return [head + b"Content-Length: %d\r\n\r\n" % length + body]
    if kind == 1:
        chunks = [head + b"Transfer-Encoding: chunked\r\n\r\n"]
        for at in range(0, len(body), 100):
            size = noise.choice([len(body[at:at + 100])] * 20 + [0, 1, 10**9, 2**64])
            chunks.append(b"%x\r\n" % size + body[at:at + 100] + noise.choice([b"\r\n"] * 20 + [b"", b"\n", b"xx"]))
        return chunks + [b"0\r\n\r\n"]
    whole = http_post(body, path)
    if kind == 2:
        return [whole] * noise.randrange(2, 6)
    if kind == 3:
        cuts = sorted(noise.randrange(len(whole)) for _ in range(3))
        return [whole[a:b] for a, b in zip([0] + cuts, cuts + [len(whole)])]
    return [whole[:noise.randrange(len(whole))]]


class Fuzzer:
    def __init__(self, server, options):
        self.server, self.options = server, options
        self.statuses = collections.Counter()
        self.failure = None
        self.question = chat("wake me at 7 am", tool_choice="required")
        self.answer = self.ask_question()
        self.until = time.monotonic() + options.seconds

    def ask_question(self):
        for _ in range(50):
            reply, text = self.server.ask("POST", CHAT, self.question, timeout=20)
            if reply.status == 200:
                message = json.loads(text)["choices"][0]["message"]
                return [call["function"] for call in message["tool_calls"]]
            assert reply.status == 429, (reply.status, text)
            time.sleep(0.1)
        raise AssertionError("always full")

    def json_case(self, noise):
        path, value = noise.choice(VALID)
        body = changed_json(noise, value)
        with self.server.connect(http_post(body, path).replace(b"Host:", b"Connection: close\r\nHost:", 1), wait=20) as client:
            reply = read_all(client)
        status = reply[9:12].decode("ascii", "replace")
        self.statuses[status] += 1
        head, _, rest = reply.partition(b"\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 ") and status != "500" and rest, reply[:500]
        if status != "200":
            assert set(json.loads(rest)["error"]) == {"message", "type", "param", "code"}, reply[:500]
        elif b"text/event-stream" not in head:
            json.loads(rest)
        return body

    def raw_case(self, noise):
        path, value = noise.choice(VALID)
        body = json.dumps(value).encode()
        if noise.random() < 0.6:
            other = http_post(json.dumps(noise.choice(VALID)[1]).encode())
            pieces = [changed_bytes(noise, http_post(body, path), other)]
        else:
            pieces = changed_framing(noise, path, body)
        try:
            with self.server.connect(wait=noise.choice([0.02, 0.2])) as client:
                for piece in pieces:
                    client.sendall(piece)
                    if noise.random() < 0.1:
                        time.sleep(0.01)
                reply = read_all(client)
        except OSError:  # the server had closed
            reply = b""
        self.statuses[reply[9:12].decode("ascii", "replace") if reply else "closed"] += 1
        assert not reply.startswith(b"HTTP/1.1 500"), reply[:500]
        return b"".join(pieces)

    def run(self, number):
        noise = random.Random(self.options.seed * 1000 + number)
        count = 0
        while time.monotonic() < self.until and self.failure is None:
            state = noise.getstate()
            try:
                (self.json_case if noise.random() < 0.6 else self.raw_case)(noise)
                count += 1
                if count % 25 == 0:
                    assert self.ask_question() == self.answer, "another answer than at the start"
            except Exception as error:  # reported by main
                self.failure = (error, state)


def resident_mb(process):
    return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def sockets(process):
    return sum(os.readlink(path).startswith("socket:") for path in pathlib.Path(f"/proc/{process}/fd").iterdir())


def check_end(server, before_mb):
    server.wait_for("needle_running", 0, 30)
    server.wait_for("needle_waiting", 0, 30)
    until = time.monotonic() + 40
    while (left := sockets(server.process.pid)) > 2:  # it listens; and the connection of the question may just be closing
        assert time.monotonic() < until, f"{left} sockets are left"
        time.sleep(0.2)
    grown = resident_mb(server.process.pid) - before_mb
    assert grown < 64, f"memory grew by {grown:.0f} MB"
    return grown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--model")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("fuzz-failures"))
    options = parser.parse_args()
    socket.setdefaulttimeout(30)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            subprocess.run([str(options.bin / "needle-load-probe"), "--write-models", folder], check=True, env={**os.environ, "NEEDLE_SOURCE_DIR": str(ROOT)})
            options.model = folder + "/model.needle"
        with Server(str(options.bin / "needle-serve"), "-m", options.model, "--slow-client-ms", "500", "--deadline-ms", "5000") as server:
            fuzzer = Fuzzer(server, options)
            before = resident_mb(server.process.pid)
            threads = [threading.Thread(target=fuzzer.run, args=(i,)) for i in range(options.clients)]
            for thread in threads:
                thread.start()
            quarters = []  # what is kept of requests shows in all of them, caches in the first ones
            for _ in range(4):
                time.sleep(options.seconds / 4)
                quarters.append(f"{resident_mb(server.process.pid) - before:+.1f}")
            for thread in threads:
                thread.join()
            print(f"{sum(fuzzer.statuses.values())} requests: {dict(fuzzer.statuses.most_common())}")
            if fuzzer.failure is not None:
                error, state = fuzzer.failure
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / "state.json").write_text(json.dumps(state))
                print(f"failed: {error!r}; the generator's state before it lies in {options.keep}/state.json", file=sys.stderr)
                server.process.kill()
                return 1
            grown = check_end(server, before)
        print(f"it stayed up; memory {' '.join(quarters)} MB by quarters, {grown:+.1f} MB at the end, no socket left, exit code 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
