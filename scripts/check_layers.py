#!/usr/bin/env python3
"""Checks the walls between the libraries: who includes whom, who links whom, who may see LibTorch, spdlog and fmt.

Usage: scripts/check_layers.py [ROOT]. Prints file:line: reason for each break; exit code 1 if there is one.
"""

import pathlib
import re
import sys

# Library -> libraries it may use. `runtime` and `model` speak of tokens and prompts, hence their `text`.
MAY_USE = {
    "core": set(),
    "calls": {"core"},
    "text": {"core", "calls"},
    "quant": {"core"},
    "data": {"core", "calls", "text"},
    "decode": {"core", "calls", "text"},
    "eval": {"core", "calls", "text", "decode"},
    "runtime": {"core", "calls", "text", "quant", "decode"},
    "synth": {"core", "calls", "text", "data"},
    # The page makes rows from its tools and checks them before training.
    "server": {"core", "calls", "text", "data", "decode", "runtime", "synth"},
    "capi": {"core", "calls", "text", "decode", "runtime"},
    "model": {"core", "text", "quant", "decode"},
    "train": {"core", "calls", "text", "data", "decode", "eval", "quant", "model"},
    "export": {"core", "calls", "text", "quant", "decode", "model", "runtime"},
}
SEES_TORCH = {"model", "train", "export"}
# Folders of apps/; in apps/examples each source is a program of its own.
APPS_WITH_TORCH = {"needle_train", "needle_export", "needle_eval", "generate_libtorch"}
SOURCES = {".h", ".cpp", ".cc", ".hpp"}

# Headers of other packages -> the libraries that may include them; whoever is not named here may not.
PACKAGES = [
    (re.compile(r"(torch|ATen|c10|caffe2|gloo)/"), SEES_TORCH, "LibTorch"),
    (re.compile(r"(spdlog|fmt)/"), {"core"}, "spdlog and fmt: use needle/core/log.h and format.h"),
    (re.compile(r"sentencepiece"), {"text"}, "SentencePiece"),
    # train downloads the released weights
    (re.compile(r"httplib\.h|openssl/"), {"synth", "server", "train"}, "HTTP"),
    (re.compile(r"zlib\.h"), {"data"}, "zlib: use the readers of needle/data"),
    (re.compile(r"CLI/"), set(), "CLI11: only apps parse command lines"),
]
# Headers whose library is a target of its own, because it links what others shall not: header -> (libraries that may
# include it, target, package).
APART = {
    "needle/core/log.h": ({"train", "server"}, "core_log", "spdlog"),
    "needle/text/tokenizer_trainer.h": ({"train"}, "text_trainer", "SentencePiece"),
}
# Packages that an app may include directly; LibTorch depends on the app.
APP_PACKAGES = {"CLI11: only apps parse command lines", "HTTP"}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def includes(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1)


def sources(folder):
    return sorted(p for p in folder.rglob("*") if p.suffix in SOURCES)


def used_library(header):
    """The library of "needle/<library>/..."; None for any other header."""
    parts = header.split("/")
    return parts[1] if parts[0] == "needle" and len(parts) > 2 else None


def check_library_source(path, library, problems):
    allowed = MAY_USE[library] | {library}
    for number, header in includes(path):
        used = used_library(header)
        if used is not None and used not in allowed:
            problems.append((path, number, f"{library} may not use {used}; it may use {', '.join(sorted(MAY_USE[library])) or 'nothing'}"))
        elif header in APART and library not in APART[header][0] | {used}:
            problems.append((path, number, f"{library} may not include {header}: it links {APART[header][2]}"))
        elif header.startswith(("apps/", "tests/")):
            problems.append((path, number, f"{library} may not use {header}"))
        for pattern, libraries, name in PACKAGES:
            trainer_only = name == "SentencePiece" and path.stem != "tokenizer_trainer"
            if pattern.match(header) and (library not in libraries or trainer_only):
                problems.append((path, number, f"{library} may not include {header} ({name})"))


def check_app_source(path, app, problems):
    for number, header in includes(path):
        used = used_library(header)
        if used in SEES_TORCH and app not in APPS_WITH_TORCH:
            problems.append((path, number, f"{app} is built without LibTorch and may not use {used}"))
        for pattern, libraries, name in PACKAGES:
            torch_app = libraries is SEES_TORCH and app in APPS_WITH_TORCH
            if pattern.match(header) and name not in APP_PACKAGES and not torch_app:
                problems.append((path, number, f"{app} may not include {header} ({name})"))


def cmake_calls(path, command):
    """(line, arguments) of each `command(...)` without nested parentheses."""
    text = re.sub(r"#[^\n]*", "", path.read_text(encoding="utf-8"))
    for match in re.finditer(rf"\b{command}\s*\(([^()]*)\)", text):
        yield text.count("\n", 0, match.start()) + 1, match.group(1).split()


def check_links(path, problems):
    """needle_add_library(<name> ... LINKS needle::x ...) must list libraries of the table."""
    for number, arguments in cmake_calls(path, "needle_add_library"):
        library = arguments[0]
        if library not in MAY_USE:
            continue  # reported once by its folder
        for argument in arguments[1:]:
            used = argument.removeprefix("needle::")
            if used != argument and used in MAY_USE and used not in MAY_USE[library]:
                problems.append((path, number, f"{library} may not link {argument}"))
        if ("TORCH" in arguments) != (library in SEES_TORCH):
            problems.append((path, number, f"{library} {'needs' if library in SEES_TORCH else 'may not have'} TORCH"))
    for number, arguments in cmake_calls(path, "needle_add_app"):
        app = arguments[0]
        for argument in arguments[1:]:
            used = argument.removeprefix("needle::")
            if used != argument and used in SEES_TORCH and app not in APPS_WITH_TORCH:
                problems.append((path, number, f"{app} is built without LibTorch and may not link {argument}"))
        if "TORCH" in arguments and app not in APPS_WITH_TORCH:
            problems.append((path, number, f"{app} may not have TORCH"))


def linked_libraries(cmake):
    """Library -> what its needle_add_library links, links of links included."""
    direct = {}
    for path in cmake:
        for _, arguments in cmake_calls(path, "needle_add_library"):
            direct[arguments[0]] = {a.removeprefix("needle::") for a in arguments if a.startswith("needle::")}
    reached = {}

    def reach(library, above):
        if library not in reached and library not in above:
            links = direct.get(library, set())
            reached[library] = links.union(*(reach(link, above | {library}) for link in links))
        return reached.get(library, set())

    return {library: reach(library, set()) for library in direct}


def check(root):
    problems = []
    libraries = sorted(p for p in (root / "needle").iterdir() if p.is_dir())
    links = linked_libraries([p / "CMakeLists.txt" for p in libraries if (p / "CMakeLists.txt").exists()])
    for folder in libraries:
        library = folder.name
        if library not in MAY_USE:
            problems.append((folder, 0, f"{library} is not in the table of scripts/check_layers.py"))
            continue
        for path in sources(folder):
            check_library_source(path, library, problems)
            for number, header in includes(path):
                used = used_library(header)
                target = APART[header][1] if header in APART else used
                if used in MAY_USE[library] and target not in links.get(library, set()):
                    problems.append((path, number, f"{library} includes {header}, but its CMakeLists.txt does not link needle::{target}"))
        if (folder / "CMakeLists.txt").exists():
            check_links(folder / "CMakeLists.txt", problems)
    apps = root / "apps"
    if apps.is_dir():
        for path in sorted(p for p in apps.iterdir() if p.suffix in SOURCES):  # shared by all commands
            check_app_source(path, path.name, problems)
        for folder in sorted(p for p in apps.iterdir() if p.is_dir()):
            for path in sources(folder):
                check_app_source(path, path.stem if folder.name == "examples" else folder.name, problems)
            if (folder / "CMakeLists.txt").exists():
                check_links(folder / "CMakeLists.txt", problems)
    return problems


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    if not (root / "needle").is_dir():
        print(f"{root}: no folder needle in it", file=sys.stderr)
        return 2
    problems = check(root)
    for path, number, reason in problems:
        print(f"{path.relative_to(root)}:{number}: {reason}")
    if problems:
        print(f"{len(problems)} breaks of the walls between the libraries")
        return 1
    print("the walls between the libraries stand")
    return 0


if __name__ == "__main__":
    sys.exit(main())
