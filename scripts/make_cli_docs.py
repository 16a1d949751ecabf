#!/usr/bin/env python3
"""Writes docs/cli.md from the programs' own --help, so that the two cannot differ.

usage: make_cli_docs.py BIN_FOLDER [--check]     --check: only tell whether docs/cli.md is up to date
"""
import os
import pathlib
import re
import subprocess
import sys

PROGRAMS = ["needle-train", "needle-data", "needle-export", "needle-eval", "needle-run", "needle-serve"]
TARGET = pathlib.Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def help_text(command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NEEDLE_")}
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.rstrip()


def subcommands(text: str) -> list[str]:
    match = re.search(r"^Subcommands:\n((?:  .*\n?)+)", text, re.MULTILINE)
    return re.findall(r"^  ([a-z][a-z-]*)", match.group(1), re.MULTILINE) if match else []


def render(folder: pathlib.Path) -> str:
    parts = ["# Commands\n\nWritten by `scripts/make_cli_docs.py` from the programs' `--help`. Results go to stdout, progress and "
             "warnings to stderr.\nExit codes: 0 done, 1 failed, 2 wrong usage or a wrong setting, 130 interrupted (after saving).\n"]
    for program in PROGRAMS:
        text = help_text([str(folder / program)])
        parts.append(f"## {program}\n\n```\n{text}\n```\n")
        for name in subcommands(text):
            parts.append(f"### {program} {name}\n\n```\n{help_text([str(folder / program), name])}\n```\n")
    return "\n".join(parts)


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    text = render(pathlib.Path(arguments[0]))
    if "--check" in sys.argv:
        if TARGET.read_text() != text:
            print(f"docs/cli.md differs from --help; run scripts/make_cli_docs.py {arguments[0]}", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
