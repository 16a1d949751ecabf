#!/usr/bin/env python3
"""What needle-serve promises of its API: bad bodies, limits, every field, the openai package, curl, the OpenAPI document.

usage: contract_test.py NEEDLE_SERVE MODEL.needle SLOW.needle
The parts that need the packages openai, jsonschema and openapi-spec-validator are skipped where they are not installed.
"""
import json
import shutil
import subprocess
import sys
import tempfile
import time

from serving import CHAT, HAS_JSONSCHEMA, TOOLS, Server, as_described, chat, need_models, run_checks

SCHEMA = {"type": "object", "properties": {"time": {"type": "string"}, "day": {"enum": ["mon", "tue"]}}, "required": ["day"]}


def nested(depth):
    return "[" * depth + "]" * depth


def check_bad_bodies(server):
    """Every one is refused with 400 in OpenAI's shape, fast, and the next request is answered."""
    def body(text):
        return text.encode() if isinstance(text, str) else text
    question = '{"messages":[{"role":"user","content":"hi"}],%s}'
    bad = [
        "", " ", "null", "true", "1", '"text"', "[]", "{", "}", "{}", "{]", '{"messages"}', '{"messages":1}', '{"messages":[]}',
        '{"messages":[1]}', '{"messages":[{}]}', '{"messages":[{"role":"user"}]}', '{"messages":[{"role":"user","content":7}]}',
        '{"messages":[{"role":"user","content":""}]}', '{"messages":[{"role":"user","content":" \\n\\t "}]}',
        '{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}', '{"messages":[{"role":"assistant","content":"hi"}]}',
        nested(100), nested(100_000), '{"a":' * 100_000, question % ('"tools":' + nested(250)), question % '"tools":{"tools":7}',
        question % '"tools":7', question % '"tools":[1]', question % '"tools":[{}]', question % '"tools":[{"name":""}]',
        question % '"tools":[{"name":"a"},{"name":"a"}]', question % '"model":7', question % '"stream":"yes"', question % '"n":1.5',
        question % '"tool_choice":"required"', question % '"tool_choice":"any"', question % '"tool_choice":{"type":"function"}',
        question % '"tool_choice":{"type":"function","function":{"name":"x"}}', question % '"parallel_tool_calls":1',
        question % '"response_format":{"type":"json_object"}', question % '"response_format":{"type":"json_schema"}',
        question % '"logprobs":true', question % '"functions":[]', question % '"logit_bias":{"1":1}', question % '"seed":1.5',
        question % '"stop":[""]', question % '"stop":["a","b","c","d","e"]', question % '"stop":7', question % '"n":0', question % '"n":17',
        question % '"max_tokens":0', question % '"temperature":"hot"', question % '"needle":7', question % '"needle":{"constrain":"hard"}',
        question % '"stream":true,"n":2',
        b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', b"\xff", b"\xef\xbb\xbf{}", b"\x00", b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        '{"messages":[{"role":"user","content":"' + "x" * 70_000 + '"}]}', '{"messages":[{"role":"user","content":"' + "x y " * 5_000 + '"}]}',
    ]
    start = time.monotonic()
    for text in bad:
        error = server.refused(400, "POST", CHAT, body(text))
        assert error["type"] == "invalid_request_error", (text[:100], error)
    for path, text in [("/v1/embeddings", "{}"), ("/v1/embeddings", '{"input":[]}'), ("/v1/embeddings", '{"input":""}'), ("/v1/embeddings", '{"input":[["a"]]}'),
                       ("/v1/embeddings", '{"input":[99999999]}'), ("/v1/embeddings", '{"input":["a",1]}'), ("/v1/embeddings", '{"input":"a","dimensions":3}'),
                       ("/v1/embeddings", '{"input":"a","encoding_format":"hex"}'), ("/v1/embeddings", json.dumps({"input": ["a"] * 257})),
                       ("/v1/rank", "{}"), ("/v1/rank", '{"query":"a"}'), ("/v1/rank", '{"query":"","tools":[{"name":"a"}]}'),
                       ("/v1/rank", '{"query":"a","tools":[]}'), ("/v1/rank", '{"query":"a","tools":[{"name":"a"}],"top_k":0}')]:
        server.refused(400, "POST", path, body(text))
    assert time.monotonic() - start < 30
    assert server.post(chat("wake me"))["object"] == "chat.completion"
    server.refused(400, "POST", CHAT, body(question % '"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"string","minLength":9,"maxLength":2}}}'))


def check_odd_but_right(server):
    """What is unusual and allowed is answered."""
    pair = server.post(b'{"messages":[{"role":"user","content":"\\ud800 \\u0000 \\ud83d\\ude00"}],"tools":[{"name":"a"}]}')
    assert pair["object"] == "chat.completion"
    parts = [{"type": "text", "text": "wake me "}, {"type": "text", "text": "at 7 am"}]
    split = server.post({"messages": [{"role": "user", "content": parts}], "tools": TOOLS})
    whole = server.post(chat("wake me at 7 am"))
    assert split["choices"] == [{**choice, "message": {**choice["message"], **({"tool_calls": split["choices"][0]["message"]["tool_calls"]} if "tool_calls" in choice["message"] else {})}} for choice in whole["choices"]]
    deep = {"type": "string"}
    for _ in range(40):
        deep = {"type": "array", "items": deep, "maxItems": 1}
    reply, text = server.ask("POST", CHAT, chat("x", tools=[{"name": "deep", "parameters": {"type": "object", "properties": {"a": deep}}}]))
    assert reply.status in (200, 400), text
    for content_type in ["application/json", "application/json; charset=utf-8", "Application/JSON"]:
        assert server.ask("POST", CHAT, chat("wake me"), {"Content-Type": content_type})[0].status == 200, content_type
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", ""]:
        server.refused(415, "POST", CHAT, chat("wake me"), {"Content-Type": content_type})


def check_sizes(server, program, model):
    """Huge bodies and 100,000 tools: refused early, and with larger limits still refused or answered."""
    tools = [{"name": f"tool_{i}", "description": "does things", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}} for i in range(100_000)]
    many = json.dumps(chat("x", tools=tools)).encode()
    assert len(many) > 10 << 20
    start = time.monotonic()
    server.refused(413, "POST", CHAT, many)
    reply = server.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
    assert b" 413 " in reply, reply
    assert time.monotonic() - start < 10
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = server.raw(chunked + b"10000\r\n" + b" " * 65536 + b"\r\n" + 40 * (b"10000\r\n" + b" " * 65536 + b"\r\n"))
    assert b" 413 " in endless or b" 400 " in endless, endless
    with Server(program, "-m", model, "--max-body-bytes", str(64 << 20)) as wide:
        start = time.monotonic()
        for path, body in [(CHAT, many), ("/v1/rank", json.dumps({"query": "x", "tools": tools}).encode())]:
            error = wide.refused(400, "POST", path, body)
            assert error["param"] == "tools" and "100000" in error["message"], error
        assert time.monotonic() - start < 30
        long_tool = chat("x", tools=[{"name": "a", "description": "d" * 100_000}])
        assert wide.refused(400, "POST", CHAT, long_tool)["param"].startswith("tools[0]")
    error = server.refused(400, "POST", CHAT, chat("x", tools=tools[:900]))
    assert error["code"] == "context_length_exceeded" and "/v1/rank" in error["message"], error
    ranked = server.post({"query": "x", "tools": tools[:900], "top_k": 3}, "/v1/rank")
    assert len(ranked["data"]) == 3


def check_fields(server):
    """n, seed, stop, max_tokens, tool_choice; what is ignored is listed."""
    answer = server.post(chat("wake me", strange=1, user="me", temperature=0.7, top_p=0.5, store=False, needle={"odd": 1}))
    assert set(answer["needle"]["ignored"]) == {"strange", "user", "temperature", "top_p", "store", "needle.odd"}, answer["needle"]
    history = server.post({"messages": [{"role": "system", "content": "be good"}, {"role": "user", "content": "wake me"}], "tools": TOOLS})
    assert any("messages[0]" in name for name in history["needle"]["ignored"]), history["needle"]
    for path, body in [("/v1/embeddings", {"input": "a", "user": "me"}), ("/v1/rank", {"query": "a", "tools": TOOLS, "user": "me"})]:
        assert server.post(body, path)["needle"]["ignored"] == ["user"]

    several = server.post(chat("wake me at 7", n=4, tool_choice="required"))
    assert 1 <= len(several["choices"]) <= 4 and [choice["index"] for choice in several["choices"]] == list(range(len(several["choices"])))
    texts = [json.dumps([call["function"] for call in choice["message"]["tool_calls"]]) for choice in several["choices"]]
    assert len(set(texts)) == len(texts), "one answer twice"
    probabilities = several["needle"]["choice_probabilities"]
    assert probabilities == sorted(probabilities, reverse=True)

    def functions(**fields):
        message = server.post(chat("wake me at 7", **fields))["choices"][0]["message"]
        return [call["function"] for call in message.get("tool_calls") or []]
    assert functions(tool_choice="required", seed=1) == functions(tool_choice="required", seed=-9223372036854775808) != []
    assert functions(tool_choice="none") == []
    assert len(functions(tool_choice={"type": "function", "function": {"name": "setAlarm"}})) >= 1
    assert len(functions(tool_choice="required", parallel_tool_calls=False)) == 1
    stopped = server.post(chat("wake me at 7", tool_choice="required", stop=["arguments"]))["choices"][0]
    assert stopped["finish_reason"] == "stop" and "arguments" not in (stopped["message"]["content"] or ""), stopped
    assert server.post(chat("wake me at 7", tool_choice="required", stop=["never in it"]))["choices"][0]["finish_reason"] == "tool_calls"
    few = server.post(chat("wake me at 7", max_completion_tokens=60))
    assert few["usage"]["completion_tokens"] <= 60

    value = server.post({"messages": [{"role": "user", "content": "monday at 7"}], "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}})
    assert json.loads(value["choices"][0]["message"]["content"])["day"] in ("mon", "tue"), value


def check_streams(server):
    """A stream says what the whole answer says, with usage where it is asked for."""
    for fields in [{"tool_choice": "required"}, {}, {"tool_choice": "none"}]:
        whole = server.post(chat("wake me at 7", **fields))
        reply, text = server.ask("POST", CHAT, chat("wake me at 7", stream=True, stream_options={"include_usage": True}, **fields))
        parts = text.decode().split("\n\n")
        assert reply.status == 200 and parts[-2:] == ["data: [DONE]", ""]
        events = [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
        assert calls == [call["function"] for call in whole["choices"][0]["message"].get("tool_calls", [])]
        assert events[-1]["usage"] == whole["usage"] and len({event["id"] for event in events}) == 1
        assert [choice["finish_reason"] for event in events for choice in event["choices"]][-1] == whole["choices"][0]["finish_reason"]


def check_openai(server):
    try:
        import openai
    except ImportError:
        print("openai is not installed: its part is skipped")
        return
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    question = dict(model=model, messages=[{"role": "user", "content": "wake me at 7 am"}], tools=TOOLS)
    whole = client.chat.completions.create(**question, tool_choice="required", seed=3, temperature=0, user="me")
    call = whole.choices[0].message.tool_calls[0].function
    assert whole.choices[0].finish_reason == "tool_calls" and call.name == "setAlarm" and "time" in json.loads(call.arguments)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**question, tool_choice="required", stream=True, stream_options={"include_usage": True}))
    streamed = [part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or []]
    assert streamed[0].function.arguments == call.arguments and streamed[0].id and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with client.chat.completions.stream(**question, tool_choice="required") as stream:  # the package's own collector
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.arguments
    raw = client.chat.completions.with_raw_response.create(**question)
    assert raw.headers["content-type"].startswith("application/json") and whole._request_id.startswith("req_")
    parsed = client.chat.completions.create(model=model, messages=question["messages"], response_format={
        "type": "json_schema", "json_schema": {"name": "when", "schema": SCHEMA}})
    assert json.loads(parsed.choices[0].message.content)["day"] in ("mon", "tue")
    vectors = client.embeddings.create(model=model, input=["a", "b c"])
    assert [item.index for item in vectors.data] == [0, 1] and abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-3
    for fields, error in [({"model": "nope"}, openai.NotFoundError), ({"n": 99}, openai.BadRequestError), ({"logprobs": True}, openai.BadRequestError)]:
        try:
            client.chat.completions.create(**{**question, **fields})
            raise AssertionError(f"{fields} was answered")
        except error as caught:
            assert caught.body["message"]


def check_curl(server):
    if shutil.which("curl") is None:
        print("curl is not installed: its part is skipped")
        return
    def curl(*arguments):
        result = subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result
        return result.stdout
    base = f"http://localhost:{server.port}"
    body = json.dumps(chat("wake me at 7 am", tool_choice="required"))
    answer = json.loads(curl(base + CHAT, "-H", "Content-Type: application/json", "-d", body))
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "setAlarm"
    assert curl("-N", base + CHAT, "-H", "Content-Type: application/json", "-d", body[:-1] + ',"stream":true}').endswith("data: [DONE]\n\n")
    large = json.dumps(chat("wake me", tools=[{"name": "a", "description": "x" * 60_000}]))  # curl sends Expect: 100-continue
    assert "context_length" in curl(base + CHAT, "-H", "Content-Type: application/json", "-H", "Expect: 100-continue", "-d", large)
    assert curl("-o", "/dev/null", "-w", "%{http_code}", base + "/v1/models") == "200"
    assert curl("-I", base + "/health").startswith("HTTP/1.1 200")


def check_openapi(server):
    """Each route that is described is there, no other method is, and a playground's replies are as described."""
    document = json.loads(server.ask("GET", "/openapi.json")[1])
    source = {"kind": "synth", "count": 30}
    job = server.post({"name": "mine", "tools": TOOLS, "source": source}, "/playground/jobs")["id"]
    names = {"model": json.loads(server.ask("GET", "/v1/models")[1])["data"][0]["id"], "file": "playground.js", "job": job, "first": "0",
             "upload": server.post({"kind": "rows", "bytes": 3}, "/playground/uploads")["id"]}
    bodies = {  # one that is taken; {} elsewhere
        "/playground/uploads": {"kind": "rows", "bytes": 3}, "/playground/jobs": {"tools": TOOLS, "source": source}, "/playground/uploads/{upload}": b"{}\n",
        "/playground/jobs/{job}/rows": {"rows": [{"query": "wake me at dawn", "answers": [{"name": "setAlarm", "arguments": {"time": "dawn"}}]}]},
        "/playground/jobs/{job}/start": {"shape": "huge"}}  # refused: nothing is trained here
    refused = set()
    for path, methods in sorted(document["paths"].items(), key=lambda item: item[0].endswith("remove")):
        concrete = path.format(**names)
        piece = path == "/playground/uploads/{upload}"
        headers = {"Content-Type": "application/octet-stream", "Upload-Offset": "0"} if piece else {}
        for method in {"GET", "POST", "PUT", "DELETE"} - {name.upper() for name in methods}:
            assert server.ask(method, concrete, b"{}", headers)[0].status in (404, 405), (method, path)
        for method, description in methods.items():
            body = bodies.get(path, {}) if method == "post" else None
            reply, text = server.ask(method.upper(), concrete, body, headers)
            assert reply.status not in (404, 405), (method, path, text[:300])
            if path.startswith("/playground") and reply.status != 200:
                refused.add(path.rsplit("/", 1)[1])
            elif path.startswith("/playground"):
                as_described(document, description, text)
    assert refused == {"start", "cancel", "resume", "models", "bundle"}, refused
    as_described(document, document["paths"]["/playground/jobs"]["get"], b'{"data": [], "active": ""}')
    for wrong in [b"{}", b'{"data": [], "active": "", "odd": 1}']:
        try:
            as_described(document, document["paths"]["/playground/jobs"]["get"], wrong)
        except Exception:
            continue
        assert not HAS_JSONSCHEMA, "the schema takes anything"
    try:
        import openapi_spec_validator
    except ImportError:
        print("openapi-spec-validator is not installed: its part is skipped")
        return
    openapi_spec_validator.validate(document)
    broken = json.loads(json.dumps(document))
    broken["paths"]["/health"]["get"]["responses"] = []
    try:
        openapi_spec_validator.validate(broken)
    except Exception:
        return
    raise AssertionError("the validator takes anything")


def check_request_ids(server, program, model):
    """Every reply, a refusal too, has an id: the client's own if it can stand in a log, else a new one; --log-requests writes it."""
    def id_of(*request, **headers):
        return server.ask(*request, {name.replace("_", "-"): value for name, value in headers.items()})[0].getheader("X-Request-Id")
    asked = [("POST", CHAT, chat("a")), ("POST", CHAT, chat("a", n="x")), ("GET", "/health", None), ("GET", "/nothing", None), ("POST", CHAT, b" " * (2 << 20))]
    ids = [id_of(*request) for request in asked]
    assert all(ids) and len(set(ids)) == len(ids), ids
    assert id_of(*asked[0], X_Request_Id="mine-1_2.3") == "mine-1_2.3"
    for bad in ["", "a b", "x" * 129, "caf\u00e9", "a\x1b[2J"]:
        assert id_of(*asked[0], X_Request_Id=bad.encode("latin-1")).startswith("req_"), bad
    with Server(program, "-m", model, "--log-requests") as logging:
        logging.ask("POST", CHAT, chat("a secret"), {"X-Request-Id": "one"})
        logging.ask("POST", CHAT, chat("a secret", stream=True), {"X-Request-Id": "two"})
        logging.ask("GET", "/no%0Asuch%20thing", None, {"X-Request-Id": "three"})
        logging.stop()
        until = time.monotonic() + 10
        while not any("stopped" in line for line in logging.said) and time.monotonic() < until:
            time.sleep(0.01)
        lines = [line for line in logging.said if "req=" in line]
        assert [line.rsplit("req=", 1)[1].strip() for line in lines] == ["one", "two", "three"], logging.said
        assert f'POST "{CHAT}" 200' in lines[0] and f'POST "{CHAT}" 200' in lines[1] and r'GET "/no\nsuch thing" 404' in lines[2], lines
        assert not any("secret" in line for line in logging.said)
        logging.process.poll()


def main():
    program, model = sys.argv[1:3]
    need_models([model])
    with tempfile.TemporaryDirectory() as workspace, Server(program, "-m", model, "--workspace", workspace) as server:
        run_checks([check_bad_bodies, check_odd_but_right, check_fields, check_streams, check_openai, check_curl, check_openapi], [server])
        return run_checks([check_sizes, check_request_ids], [server, program, model])


if __name__ == "__main__":
    sys.exit(main())
