#!/usr/bin/env python3
"""Holds the conformance table against an independent validator: every "valid" and "unwritten" value validates, no
"invalid" one does.

Usage: check.py                          the table
       check.py --samples PROBE COUNT    COUNT values that random logits make under the grammars of the table's schemas and of
                                         random ones; PROBE is the program needle-grammar-probe

Exit code 0 if all is right, 1 if it is not, 77 (skipped) without the package jsonschema (third_party/python-test.txt).
"""

import json
import pathlib
import subprocess
import sys

try:
    import jsonschema
except ImportError:
    print("skipped: the Python package jsonschema is missing (pip install -r third_party/python-test.txt)")
    sys.exit(77)

# Formats that jsonschema checks only with further packages; without them it lets every text pass.
FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
LEAST_PAIRS = 400


def tables():
    return sorted(pathlib.Path(__file__).parent.glob("*.json"))


def check_samples(checker, probe, count):
    lines = subprocess.run([probe, "samples", count, *map(str, tables())], stdout=subprocess.PIPE, check=True).stdout
    checked, wrong = 0, []
    for line in lines.splitlines():
        sample = json.loads(line)
        checked += 1
        try:
            value = json.loads(sample["text"])
            jsonschema.Draft202012Validator(sample["schema"], format_checker=checker).validate(value)
            problem = "" if sample["whole"] else "cut off"
        except ValueError as error:
            problem = f"not JSON: {error}"
        except jsonschema.ValidationError as error:
            problem = error.message
        if problem:
            wrong.append(f"{json.dumps(sample['schema'])}: {sample['text']}: {problem}"[:500])
    print("\n".join(wrong[:20] + [f"{checked} values made, {len(wrong)} wrong"]))
    return 1 if wrong or checked != int(count) else 0


def main():
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    unknown = [name for name in FORMATS if name not in checker.checkers]
    if unknown:
        print(f"skipped: jsonschema does not check {', '.join(unknown)}; install third_party/python-test.txt")
        return 77
    if sys.argv[1:2] == ["--samples"]:
        return check_samples(checker, *sys.argv[2:4])
    pairs, wrong = 0, []
    for path in tables():
        for case in json.loads(path.read_text(encoding="utf-8")):
            jsonschema.Draft202012Validator.check_schema(case["schema"])
            validator = jsonschema.Draft202012Validator(case["schema"], format_checker=checker)
            for verdict in ("valid", "unwritten", "invalid"):
                for value in case.get(verdict, []):
                    pairs += 1
                    if validator.is_valid(value) != (verdict != "invalid"):
                        wrong.append(f"{path.name}: {case['name']}: {json.dumps(value)} is said to be {verdict}")
    print("\n".join(wrong + [f"{pairs} pairs, {len(wrong)} wrong"]))
    if pairs < LEAST_PAIRS:
        print(f"expected at least {LEAST_PAIRS} pairs")
    return 1 if wrong or pairs < LEAST_PAIRS else 0


if __name__ == "__main__":
    sys.exit(main())
