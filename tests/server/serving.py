"""Starts needle-serve for the tests of this folder and talks to it: over http.client, or byte by byte."""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

try:
    import jsonschema
    HAS_JSONSCHEMA = True
except ImportError:
    print("jsonschema is not installed: replies are not held against their schemas")
    HAS_JSONSCHEMA = False

TOOLS = [{"type": "function", "function": {"name": "setAlarm", "parameters": {
    "type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]}}}]
CHAT = "/v1/chat/completions"


def chat(text, **fields):
    return {"messages": [{"role": "user", "content": text}], "tools": TOOLS, **fields}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NEEDLE_")}
    return {**kept, **more}


class Server:
    """A running needle-serve; `with Server(...)` stops it with SIGTERM and expects exit code 0."""

    def __init__(self, program, *arguments, cwd=None, environment=None):
        self.port = free_port()
        self.process = subprocess.Popen([program, "--port", str(self.port), *arguments], stderr=subprocess.PIPE, text=True,
                                        cwd=cwd, env=clean_environment(**(environment or {})))
        self.said = []
        while not self.said or "ready" not in self.said[-1]:
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.said}"
            self.said.append(line)
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.stop()
        else:
            self.process.kill()
            print("the server said:", *self.said, file=sys.stderr)

    def ask(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        return reply, text

    def post(self, body, path=CHAT, status=200):
        reply, text = self.ask("POST", path, body)
        assert reply.status == status, (reply.status, text[:500])
        return json.loads(text)

    def refused(self, status, method, path, body=None, headers=None):
        """The error object of a reply that must have this status and OpenAI's shape."""
        reply, text = self.ask(method, path, body, headers)
        assert reply.status == status, (path, str(body)[:200], reply.status, text[:500])
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], error
        return error

    def connect(self, data=b"", wait=30.0):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=wait)
        connection.sendall(data)
        return connection

    def raw(self, data, wait=5.0):
        with self.connect(data, wait) as connection:
            return read_all(connection)

    def metric(self, name):
        text = self.ask("GET", "/metrics")[1].decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M).group(1))

    def wait_for(self, name, value, seconds=20.0):
        until = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < until, f"{name} is {self.metric(name)}, expected {value}"
            time.sleep(0.01)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, (self.process.returncode, self.said)


def read_all(connection, until=None):
    """What comes until the other side closes, `until` stands in it, or nothing comes for the socket's timeout."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
            if until is not None and until in received:
                break
    except OSError:  # closed under us, or silent
        pass
    return received


def http_post(body, path=CHAT, host="localhost"):
    """The bytes of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            .encode() + data)


def closed(schema):
    """The schema, in which an object that lists its properties has no others."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **parts} if isinstance(schema.get("properties"), dict) else parts


def as_described(document, operation, text):
    """Raises unless a reply's bytes are what the OpenAPI document says of the operation's status 200, and nothing beside."""
    response = operation["responses"]["200"]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
    schema = closed({**response["content"]["application/json"]["schema"], "components": document["components"]})
    if HAS_JSONSCHEMA:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def run_checks(checks, arguments):
    """Runs the functions one after another: check(*arguments)."""
    for check in checks:
        start = time.monotonic()
        check(*arguments)
        print(f"{check.__name__} ok ({time.monotonic() - start:.1f} s)", flush=True)
    return 0


def need_models(arguments):
    for model in arguments:
        if not pathlib.Path(model).exists():
            print(f"{model}: no such model; skipped")
            sys.exit(77)
