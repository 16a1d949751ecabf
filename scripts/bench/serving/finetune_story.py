#!/usr/bin/env python3
"""What a model that was finetuned on the page is worth: the page's example tools, its own routes, requests in people's words.

usage: finetune_story.py [--bin build/release/bin] [--rows 1000] [--shape tiny] [--epochs 8] [--json]

Three finetunings as a user of the page would make them: from rows made offline; on from there with the wrong answers of its test
rows corrected; and once more with 20 rows by hand added. After each one the model answers 40 requests that nothing was trained on
(home_requests.py). A few minutes; the scores of one run say little of another, the order of magnitude does.
"""
import argparse
import json
import pathlib
import re
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/server"))
from home_requests import ADDED, ASKED  # noqa: E402
from serving import CHAT, Server  # noqa: E402

TOOLS = [
    {"name": "set_alarm", "description": "Set an alarm", "parameters": {"time": {"type": "string", "description": "time of day", "required": True}},
     "templates": ["wake me up at {time}", "set an alarm for {time}", "alarm at {time}"]},
    {"name": "play_music", "description": "Play a song or an artist",
     "parameters": {"song": {"type": "string", "description": "title"}, "artist": {"type": "string", "description": "who plays it"}},
     "templates": ["play {song}", "play {song} by {artist}", "put on something by {artist}"]},
    {"name": "switch_light", "description": "Switch the lights of a room",
     "parameters": {"room": {"type": "string", "required": True}, "state": {"type": "string", "enum": ["on", "off"], "required": True}},
     "templates": ["turn {state} the lights in the {room}", "switch the {room} light {state}"]},
]


def comparable(calls):
    """Order of calls and case of values aside."""
    return sorted(json.dumps(call, sort_keys=True).lower() for call in calls)


def ask(server, model, query):
    body = {"model": model, "messages": [{"role": "user", "content": query}], "tools": TOOLS}
    message = server.post(body)["choices"][0]["message"]
    return [{"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])} for call in message.get("tool_calls") or []]


def score(server, model):
    answers = [(query, expected, ask(server, model, query)) for query, expected in ASKED]
    def names(calls):
        return sorted(call["name"] for call in calls)
    return {"asked": len(answers), "exact": sum(comparable(got) == comparable(expected) for _, expected, got in answers),
            "right_tools": sum(names(got) == names(expected) for _, expected, got in answers),
            "wrong": [{"query": query, "answer": got} for query, expected, got in answers if comparable(got) != comparable(expected)]}


def finetune(server, source, rows, settings):
    """The finished job, and its seconds."""
    begin = time.monotonic()
    body = {"name": "home", "tools": TOOLS, "source": source, **({"rows": rows} if rows else {})}
    job = server.post(body, "/playground/jobs")["id"]
    server.post(settings, f"/playground/jobs/{job}/start")
    while True:
        state = json.loads(server.ask("GET", f"/playground/jobs/{job}")[1])
        if state["stage"] in ("done", "failed", "cancelled"):
            assert state["stage"] == "done", state["message"]
            return state, time.monotonic() - begin
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    page = (ROOT / "needle/server/page/editor.js").read_text()
    assert all(re.search(re.escape(f"'{template}'"), page) for tool in TOOLS for template in tool["templates"]), "the page's example has changed"
    chapters = []
    with tempfile.TemporaryDirectory() as folder, Server(str(options.bin / "needle-serve"), "--workspace", folder, cwd=folder) as server:
        source, rows, base = {"kind": "synth", "count": options.rows}, [], "scratch"
        for chapter in ["rows made offline", "wrong answers corrected", "20 rows by hand added"]:
            settings = {"base": base, "epochs": options.epochs, **({"shape": options.shape} if base == "scratch" else {})}
            job, seconds = finetune(server, source, rows, settings)
            report = job["progress"]["finetuned"]
            chapters.append({"chapter": chapter, "rows": job["check"]["rows"], "seconds": seconds, "test_rows": report["examples"],
                             "test_exact": report["strict"]["exact_match"], **score(server, job["model"])})
            if not options.json:
                now = chapters[-1]
                print(f"{chapter}: {now['rows']} rows, {seconds:.0f} s; its own test rows {100 * now['test_exact']:.1f} % exact of {now['test_rows']}; "
                      f"people's requests {now['exact']} of {now['asked']} exact, {now['right_tools']} the right tools", flush=True)
            source, base = {"kind": "job", "job": job["id"]}, job["id"]
            rows = [{"query": case["query"], "answers": json.loads(case["reference"])} for case in report["failures"]]
            if chapter.startswith("wrong"):
                rows += [{"query": query, "answers": answers} for query, answers in ADDED]
    if options.json:
        print(json.dumps(chapters, indent=1))
    else:
        print("still wrong:", *(f"  {case['query']}: {json.dumps(case['answer'])}" for case in chapters[-1]["wrong"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
