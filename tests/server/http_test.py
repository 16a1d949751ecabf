#!/usr/bin/env python3
"""needle-serve over real sockets: plain HTTP, broken clients, the official openai package where it is installed.

usage: http_test.py NEEDLE_SERVE MODEL.needle      exit code 77: skipped, there is no model
"""
import concurrent.futures
import json
import random
import subprocess
import sys
import time

from serving import CHAT, TOOLS, Server, chat, need_models, run_checks


def check_routes(server):
    for path in ["/", "/playground.js", "/playground.css", "/health", "/openapi.json", "/v1/models", "/metrics"]:
        reply, text = server.ask("GET", path)
        assert reply.status == 200 and text, path
    assert "/v1/rank" in json.loads(server.ask("GET", "/openapi.json")[1])["paths"]
    reply, text = server.ask("POST", "/v1/chat/completions", chat("wake me at 7 am", tool_choice="required", strange=1))
    answer = json.loads(text)
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "setAlarm" and "time" in json.loads(call["arguments"]), answer
    assert answer["needle"]["ignored"] == ["strange"] and answer["needle"]["problems"] == []
    reply, text = server.ask("POST", "/v1/chat/completions", chat("wake me at 7 am", tool_choice="required", stream=True))
    events = [json.loads(line[6:]) for line in text.decode().split("\n\n") if line and line != "data: [DONE]"]
    assert text.endswith(b"data: [DONE]\n\n") and reply.headers["Content-Type"] == "text/event-stream"
    streamed = [part for event in events for choice in event["choices"] for part in choice["delta"].get("tool_calls", [])]
    assert streamed[0]["function"] == call, streamed


def check_refusals(server):
    refused = server.refused
    post = CHAT
    refused(404, "GET", "/../../etc/passwd")
    refused(404, "GET", "/%2e%2e/%2e%2e/etc/passwd")
    refused(405, "GET", post)
    refused(415, "POST", post, b"a=b", {"Content-Type": "text/plain"})
    refused(415, "POST", post, b"{}", {"Content-Encoding": "gzip"})
    refused(413, "POST", post, b" " * (2 << 20))
    refused(403, "GET", "/v1/models", headers={"Host": "rebound.example"})
    refused(403, "POST", post, chat("x"), {"Origin": "http://evil.example"})
    refused(404, "POST", post, chat("x", model="../../etc/passwd"))
    for body in [b"{", b"[" * 100000, b"\xff", b"[]", b"{}", chat(""), chat("x", tools=[{}]), chat("x", n=1000)]:
        refused(400, "POST", post, body)
    impossible = {"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "string", "minLength": 5, "maxLength": 2}}, "required": ["x"]}}
    refused(400, "POST", post, chat("x", tools=[impossible], tool_choice="required"))
    refused(400, "POST", post, chat("x", tools=[{"name": f"t{i}"} for i in range(3000)]))
    assert b" 431 " in server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100000)
    assert "access-control-allow-origin" not in server.ask("OPTIONS", post)[0].headers


def check_noise(server):
    """Random and mutated requests: whatever comes, the server goes on."""
    noise = random.Random(5)
    body = json.dumps(chat("wake me")).encode()
    whole = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(noise.randrange(1, 6)):
            at = noise.randrange(len(data))
            data[at:at + noise.randrange(3)] = noise.randbytes(noise.randrange(4))
        server.raw(bytes(data[:noise.randrange(1, len(data) + 1)]), wait=0.05)
    assert server.ask("GET", "/health")[0].status == 200


def check_many_clients(server):
    """32 clients, each with texts of its own: every reply is the one that the text alone gives."""
    texts = [f"wake me at {hour} {half}" for hour in range(1, 13) for half in ["am", "pm"]]

    def answer(text):
        for _ in range(200):
            reply, data = server.ask("POST", "/v1/chat/completions", chat(text, tool_choice="required"))
            if reply.status != 429:
                return json.loads(data)["choices"][0]["message"]["tool_calls"][0]["function"]
            assert reply.headers["Retry-After"]
            time.sleep(0.02)
        raise AssertionError("always full")

    expected = {text: answer(text) for text in texts}
    assert len({value["arguments"] for value in expected.values()}) > 1  # else nothing could be mixed up
    asked = texts * 20
    with concurrent.futures.ThreadPoolExecutor(32) as clients:
        for text, value in zip(asked, clients.map(answer, asked)):
            assert value == expected[text], text


def check_openai(server):
    try:
        import openai
    except ImportError:
        print("openai is not installed: its part is skipped")
        return
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    name = client.models.list().data[0].id
    question = dict(model=name, messages=[{"role": "user", "content": "wake me at 7 am"}], tools=TOOLS, tool_choice="required")
    whole = client.chat.completions.create(**question)
    assert whole.choices[0].finish_reason == "tool_calls"
    streamed = [call for chunk in client.chat.completions.create(**question, stream=True) for choice in chunk.choices
                for call in choice.delta.tool_calls or []]
    assert streamed[0].function.arguments == whole.choices[0].message.tool_calls[0].function.arguments
    vectors = client.embeddings.create(model=name, input=["a", "b c"])
    assert abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-3  # a text may embed to nothing with a tiny model
    try:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
        raise AssertionError("a model that does not exist answered")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"


def check_key_and_port(program, model):
    server = Server(program, "-m", model, "--api-key", "secret")
    assert server.ask("GET", "/v1/models")[0].status == 401
    assert server.ask("GET", "/v1/models", headers={"Authorization": "Bearer secret"})[0].status == 200
    taken = subprocess.run([program, "-m", model, "--port", str(server.port)], capture_output=True, text=True)
    assert taken.returncode == 1 and "another program" in taken.stderr, taken
    exposed = subprocess.run([program, "-m", model, "--host", "0.0.0.0"], capture_output=True, text=True)
    assert exposed.returncode == 2 and "NEEDLE_API_KEY" in exposed.stderr, exposed
    server.stop()


def main():
    program, model = sys.argv[1:3]
    need_models([model])
    with Server(program, "-m", model) as server:
        run_checks([check_routes, check_refusals, check_noise, check_many_clients, check_openai], [server])
    return run_checks([check_key_and_port], [program, model])


if __name__ == "__main__":
    sys.exit(main())
