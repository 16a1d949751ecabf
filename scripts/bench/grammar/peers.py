#!/usr/bin/env python3
"""What grammar libraries make of JSON Schemas: coverage, compile time and mask time over one vocabulary.

usage: peers.py --tokenizer tokenizer.model [--probe build/release/bin/needle-grammar-probe] [--schemas FOLDER] [--repeats N]
       [--markdown]

Each library of `llguidance` and `xgrammar` that is installed (pip install llguidance xgrammar sentencepiece) compiles every
schema of tests/decode/conformance and is walked along each value, written as compact JSON in greedy tokens:
  compiled   schemas that it takes
  accepted   values that fit the schema and can be written: more is better
  refused    values that do not fit and cannot be written: more is better
  compile    median and 99th percentile of the least of N compilations
  mask       the same of the time that the set of next tokens takes, over all steps of all values that fit
A schema that is not compiled counts its values as neither accepted nor refused. --probe adds Needle's own row, along the same
tokens; its times are those of the C++ calls, the libraries' those of their Python bindings.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parents[3]
EOS = 1


def vocabulary(path):
    """The bytes of each id, None for control tokens."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = []
    for i in range(model.vocab_size()):
        piece = model.id_to_piece(i)
        if model.is_byte(i):
            pieces.append(bytes([int(piece[1:-1], 16)]))
        elif model.is_control(i) or model.is_unknown(i) or piece in ("<tool_call>", "<tools>"):
            pieces.append(None)
        else:
            pieces.append(piece.replace("\u2581", " ").encode())
    return pieces


def greedy(text, ids_by_bytes, longest):
    data, ids = text.encode(), []
    while data:
        for length in range(min(longest, len(data)), 0, -1):
            if data[:length] in ids_by_bytes:
                ids.append(ids_by_bytes[data[:length]])
                data = data[length:]
                break
    return ids


class LLGuidance:
    name = "llguidance"

    def __init__(self, pieces):
        import llguidance

        class Tokens:
            eos_token_id, bos_token_id = EOS, None
            tokens = [piece if piece is not None else b"" for piece in pieces]
            special_token_ids = [i for i, piece in enumerate(pieces) if piece is None]

            def __call__(self, text):
                return [self.tokens.index(bytes([byte])) for byte in text]

        self.library = llguidance
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokens()))

    def compile(self, schema):
        # The model writes no spaces between tokens of JSON.
        grammar = self.library.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"})
        matcher = self.library.LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def start(self, compiled):
        compiled.reset()
        return compiled

    def mask(self, matcher):
        matcher.compute_bitmask()

    def accept(self, matcher, token):
        return matcher.try_consume_tokens([token]) == 1

    def may_end(self, matcher):
        return matcher.is_accepting()


class XGrammar:
    name = "xgrammar"

    def __init__(self, pieces):
        import xgrammar

        self.library = xgrammar
        tokens = [piece if piece is not None else b"" for piece in pieces]
        info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, vocab_size=len(tokens), stop_token_ids=[EOS])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bitmask = xgrammar.allocate_token_bitmask(1, len(tokens))

    def compile(self, schema):
        return self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=(",", ":"),
                                                 strict_mode=False)

    def start(self, compiled):
        return self.library.GrammarMatcher(compiled)

    def mask(self, matcher):
        matcher.fill_next_token_bitmask(self.bitmask)

    def accept(self, matcher, token):
        return matcher.accept_token(token)

    def may_end(self, matcher):
        return matcher.accept_token(EOS)


def least_time(function, repeats):
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def walk(engine, compiled, ids, mask_times=None):
    matcher = engine.start(compiled)
    for token in ids:
        if mask_times is not None:
            mask_times.append(least_time(lambda: engine.mask(matcher), 1)[0])
        if not engine.accept(matcher, token):
            return False
    return engine.may_end(matcher)


def measure(engine, cases, spell, repeats):
    compile_times, mask_times = [], []
    figures = {"compiled": 0, "accepted": 0, "refused": 0, "not_compiled": []}
    for case in cases:
        try:
            seconds, compiled = least_time(lambda: engine.compile(case["schema"]), repeats)
        except Exception as error:  # a library's own kinds of refusal
            figures["not_compiled"].append(f"{case['name']}: {str(error).splitlines()[0][:100]}")
            continue
        figures["compiled"] += 1
        compile_times.append(seconds)
        figures["accepted"] += sum(walk(engine, compiled, spell(value), mask_times) for value in case["valid"])
        figures["refused"] += sum(not walk(engine, compiled, spell(value)) for value in case["invalid"])
    figures["compile"], figures["mask"] = spread(compile_times), spread(mask_times)
    return figures


def measure_probe(probe, tokenizer, cases):
    lines = "".join(json.dumps({key: case[key] for key in ("schema", "valid", "invalid")}) + "\n" for case in cases)
    output = subprocess.run([probe, "schemas", tokenizer], input=lines, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    return {"compiled": len(rows), "not_compiled": [], "accepted": sum(row["valid"] for row in rows),
            "refused": sum(len(case["invalid"]) - row["invalid"] for case, row in zip(cases, rows)),
            "compile": spread([1e-6 * row["compile_us"] for row in rows]),
            "mask": spread([1e-6 * mask for row in rows for mask in row["mask_us"]])}


def spread(seconds):
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--probe")
    parser.add_argument("--schemas", type=pathlib.Path, default=ROOT / "tests/decode/conformance")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    cases = [case for path in sorted(options.schemas.glob("*.json")) for case in json.loads(path.read_text())]
    pieces = vocabulary(options.tokenizer)
    ids_by_bytes = {piece: i for i, piece in enumerate(pieces) if piece}
    longest = max(map(len, ids_by_bytes))

    def spell(value):
        return greedy(json.dumps(value, ensure_ascii=False, separators=(",", ":")), ids_by_bytes, longest)

    rows = [("needle", measure_probe(options.probe, options.tokenizer, cases))] if options.probe else []
    for library in (LLGuidance, XGrammar):
        try:
            engine = library(pieces)
        except (ImportError, OSError) as error:
            print(f"{library.name}: left out: {error}", file=sys.stderr)
            continue
        rows.append((library.name, measure(engine, cases, spell, options.repeats)))
    fitting = sum(len(case["valid"]) for case in cases)
    unfit = sum(len(case["invalid"]) for case in cases)
    print(f"{len(cases)} schemas, {fitting} values that fit, {unfit} that do not, vocabulary of {len(pieces)}\n")
    mark = "| " if options.markdown else ""
    print(mark + "library | compiled | accepted | refused | compile, median / p99 | mask, median / p99" + mark[::-1])
    if options.markdown:
        print("| --- | --- | --- | --- | --- | --- |")
    for name, figures in rows:
        compile_ms = " / ".join(f"{1e3 * seconds:.2f}" for seconds in figures["compile"])
        mask_us = " / ".join(f"{1e6 * seconds:.1f}" for seconds in figures["mask"])
        print(mark + f"{name} | {figures['compiled']} | {figures['accepted']} | {figures['refused']} | "
              f"{compile_ms} ms | {mask_us} us" + mark[::-1])
    for name, figures in rows:
        for line in figures["not_compiled"]:
            print(f"{name} does not compile {line}", file=sys.stderr)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
