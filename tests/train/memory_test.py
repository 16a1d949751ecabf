#!/usr/bin/env python3
"""needle-train in a child process with little address space: the message, and a micro-batch that fits.

usage: memory_test.py BIN_FOLDER [TestClass.test_name ...]
"""
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = ""
BATCH = 96
MODEL = {
    "vocab_size": 340, "d_model": 96, "num_heads": 4, "num_kv_heads": 2, "num_encoder_layers": 3,
    "num_decoder_layers": 2, "max_seq_len": 512, "contrastive_dim": 8,
}


class MemoryTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)
        letters = random.Random(7)  # that no tokenizer makes much shorter
        with open(self.folder / "text.jsonl", "w", encoding="utf-8") as file:
            for _ in range(120):
                text = "".join(letters.choice("abcdefghijklmnop") for _ in range(200))
                file.write(json.dumps({"query": text, "query_seed_text": "", "synthetic_answer": text[::-1]}) + "\n")
        (self.folder / "model.json").write_text(json.dumps(MODEL))
        (self.folder / "config.json").write_text(json.dumps({
            "model": "model.json", "data": {"rows": {"kind": "pretrain", "pack": False}},
            "tokenizer": {"train": {"num_threads": 1}},
            "train": {"batch_size": BATCH, "max_steps": 2, "device": "cpu", "log_every": 1, "compute_dtype": "float32"},
            "optimizer": {"muon": {"newton_schulz_dtype": "float32"}}, "step": {"quant": {"every": 1}}}))

    def start(self, name, limit, *settings):
        words = [PROGRAM, "pretrain", str(self.folder / "config.json"), "--data", str(self.folder / "text.jsonl"),
                 "-o", str(self.folder / name), "--set", f"data.cache={self.folder / 'cache'}"]
        for setting in settings:
            words += ["--set", setting]

        def restrict():
            if limit:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=restrict,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def train(self, name, limit, *settings, expect=0):
        process = self.start(name, limit, *settings)
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, expect, errors)
        return errors

    def peak(self, name, *settings):
        """Bytes of address space that a run takes."""
        process = self.start(name, None, *settings)
        peak = 0
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak] + [int(kib) * 1024 for kib in re.findall(r"VmPeak:\s+(\d+) kB", status)])
            except OSError:
                break
            time.sleep(0.002)
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        return peak

    def losses(self, name):
        return [json.loads(line)["loss"] for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()
                if '"train"' in line]

    def test_a_batch_that_does_not_fit_is_said_and_auto_finds_one_that_does(self):
        whole = self.peak("whole")
        small = self.peak("small", "train.micro_batch=2")
        self.assertGreater(whole - small, 600e6, "the batch must be what takes the memory")
        limit = small + (whole - small) // 2

        errors = self.train("refused", limit, expect=1)
        self.assertRegex(errors, r"step 1: out of memory: a pass over 96 rows of \d+ \+ \d+ tokens does not fit")
        self.assertIn("train.micro_batch=48", errors)

        errors = self.train("auto", limit, "train.micro_batch=auto")
        found = re.search(r"micro-batch: (\d+) of 96 rows fit into the [\d.]+ GB that are free \(RLIMIT_AS\)", errors)
        self.assertIsNotNone(found, errors)
        self.assertIn(int(found[1]), (48, 24, 12, 6, 3, 2, 1))
        state = json.loads((self.folder / "auto/checkpoints/step-000002/state.json").read_text())
        self.assertEqual(state["micro_batch"], int(found[1]))

        # Sums in another order: float32 rounding. The second loss has an update of all parameters behind it.
        for name in ("small", "auto"):
            for one, other in zip(self.losses("whole"), self.losses(name)):
                self.assertLess(abs(one - other), 2e-5 * abs(one), name)

        # Without a limit all rows fit.
        self.assertIn("micro-batch: 96 of 96 rows", self.train("free", None, "train.micro_batch=auto"))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    PROGRAM = os.path.join(os.path.abspath(sys.argv[1]), "needle-train")
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
