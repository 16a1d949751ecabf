#!/usr/bin/env python3
"""Prints the one-page report of scripts/quickstart as Markdown. usage: quickstart_report.py OUTPUT_FOLDER"""
import json
import pathlib
import sys


def last_losses(metrics: pathlib.Path) -> str:
    records = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    losses = [record["loss"] for record in records if record.get("loss") is not None and "step" in record]
    return f"{losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps" if losses else "no steps"


def percent(value) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    output = pathlib.Path(sys.argv[1])
    finetuned = json.loads((output / "finetune" / "bundle" / "report.json").read_text())
    unseen = json.loads((output / "unseen.json").read_text())
    size = (output / "quickstart.needle").stat().st_size
    print("# Quickstart report\n")
    print(f"- pretraining: loss {last_losses(output / 'pretrain' / 'metrics.jsonl')}")
    print(f"- finetuning: loss {last_losses(output / 'finetune' / 'metrics.jsonl')}")
    print(f"- exported file: {size / 1e6:.2f} MB, INT4\n")
    print("![loss curve](loss.svg)\n")
    print("| figure | base, test split | finetuned, test split | exported INT4, values never trained on |")
    print("| --- | ---: | ---: | ---: |")
    for label, key in [("answers that parse", "parse_rate"), ("right tools", "right_tools"), ("exact match", "exact_match")]:
        row = [find(part, key) for part in (finetuned.get("base"), finetuned.get("finetuned"), unseen)]
        print(f"| {label} | " + " | ".join(percent(value) for value in row) + " |")
    print("\n## Answers of the exported file\n\n```")
    print((output / "answers.txt").read_text().rstrip())
    print("```")
    return 0


def find(tree, key):
    """The value of `key` nearest to the root of a report."""
    level = [tree]
    while level:
        for node in level:
            if isinstance(node, dict) and key in node:
                return node[key]
        level = [child for node in level if isinstance(node, (dict, list))
                 for child in (node.values() if isinstance(node, dict) else node)]
    return None


if __name__ == "__main__":
    sys.exit(main())
