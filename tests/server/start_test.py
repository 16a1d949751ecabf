#!/usr/bin/env python3
"""needle-serve without --model: which model it takes, what it says if there is none, ports.

usage: start_test.py NEEDLE_SERVE MODEL.needle SLOW.needle
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

from serving import CHAT, Server, chat, clean_environment, need_models, run_checks


def place(model, path, age):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, path)
    time = path.stat().st_mtime - age
    os.utime(path, (time, time))


def listed(server):
    return [item["id"] for item in json.loads(server.ask("GET", "/v1/models")[1])["data"]]


def check_order(program, model):
    """This folder first, then runs/, then NEEDLE_HOME; the newest first; names stay different."""
    with tempfile.TemporaryDirectory() as name:
        here, home = pathlib.Path(name, "here"), pathlib.Path(name, "home")
        here.mkdir()
        place(model, home / "cached.needle", 0)
        place(model, here / "runs/a/export/model.needle", 50)
        place(model, here / "runs/b/model.needle", 10)
        place(model, here / "runs/c/d/e/too-deep.needle", 0)
        with Server(program, cwd=here, environment={"NEEDLE_HOME": str(home)}) as server:
            assert listed(server) == ["model", "export-model", "cached"], listed(server)
            assert server.post(chat("wake me"))["model"] == "model"
            place(model, here / "old.needle", 100)
            place(model, here / "new.needle", 90)
            # What was the default stays it: a client's answers do not change under it.
            assert listed(server) == ["model", "new", "old", "export-model", "cached"], listed(server)
            assert server.post(chat("wake me", model="new"))["model"] == "new"
        with Server(program, cwd=here, environment={"NEEDLE_HOME": str(home)}) as server:
            assert listed(server)[:2] == ["new", "old"]
        pathlib.Path(here, "broken.needle").write_text("not a model")
        with Server(program, cwd=here, environment={"NEEDLE_HOME": str(home)}) as server:
            assert server.post(chat("wake me"))["model"] == "new"
            assert any("broken.needle" in line for line in server.said), server.said


def check_no_model(program, model):
    """The page is there and says what to do; a model that comes later is found."""
    with tempfile.TemporaryDirectory() as name:
        with Server(program, cwd=name, environment={"NEEDLE_HOME": name + "/none"}) as server:
            assert any("no model" in line and "--model" in line for line in server.said), server.said
            assert b"<html" in server.ask("GET", "/")[1]
            empty = json.loads(server.ask("GET", "/v1/models")[1])
            assert empty["data"] == [] and "needle-train" in empty["needle"]["hint"], empty
            assert "needle-train" in server.refused(404, "POST", CHAT, chat("wake me"))["message"]
            place(model, pathlib.Path(name, "late.needle"), 0)
            assert server.post(chat("wake me"))["model"] == "late"


def check_folder(program, model):
    """--models: what lies in the folder, and nothing else."""
    with tempfile.TemporaryDirectory() as name:
        place(model, pathlib.Path(name, "models/one.needle"), 0)
        place(model, pathlib.Path(name, "two.needle"), 0)
        with Server(program, "--models", "models", cwd=name) as server:
            assert listed(server) == ["one"]
            for other in ["two", "../two", "models/one", "one.needle", name + "/two"]:
                server.refused(404, "POST", CHAT, chat("wake me", model=other))


def check_port(program, model):
    """The default port, and a port that somebody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run([program, "-m", model, "--port", port], capture_output=True, text=True, timeout=60, env=clean_environment())
        assert result.returncode == 1 and port in result.stderr and "--port" in result.stderr, result
    assert "7860" in subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    for arguments, code in [(["--port", "99999"], 2), (["--no-such-flag"], 2), (["-m", "absent.needle"], 1), (["-m", model, "-m", model], 2)]:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, env=clean_environment())
        assert result.returncode == code and result.stderr, (arguments, result)


def main():
    program, model = sys.argv[1:3]
    need_models([model])
    return run_checks([check_order, check_no_model, check_folder, check_port], [os.path.abspath(program), model])


if __name__ == "__main__":
    sys.exit(main())
