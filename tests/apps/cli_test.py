#!/usr/bin/env python3
"""Runs the programs as a user would: the whole road on a micro model, and every kind of bad input.

usage: cli_test.py BIN_FOLDER
"""
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = pathlib.Path(".")
SOURCE = pathlib.Path(os.environ.get("NEEDLE_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
TOOLS = SOURCE / "data" / "quickstart_tools.json"

MICRO = {
    "model": {"vocab_size": 420, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "num_encoder_layers": 1,
              "num_decoder_layers": 1, "contrastive_dim": 8},
    "data": {"validation_rows": 4, "rows": {"kind": "pretrain", "prompt": {"max_enc_len": 96, "max_dec_len": 64}}},
    "train": {"batch_size": 2, "max_steps": 4, "device": "cpu", "compute_dtype": "float32"},
}


class Cli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="needle-cli-"))
        cls.home = cls.folder / "home"
        cls.rows = cls.folder / "rows.jsonl"
        cls.text = cls.folder / "text.jsonl"
        cls.config = cls.folder / "micro.json"
        cls.config.write_text(json.dumps(MICRO))
        cls.check(cls.run_program("needle-data", "synth", "--tools", TOOLS, "-n", "80", "-o", cls.rows))
        cls.check(cls.run_program("needle-data", "synth", "--kind", "pretrain", "-n", "200", "-o", cls.text))
        cls.base = cls.folder / "base"
        cls.check(cls.run_program("needle-train", "pretrain", cls.config, "--data", cls.text, "-o", cls.base,
                                  "--set", f'tokenizer.texts=["{cls.text}","{cls.rows}"]'))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def run_program(cls, program, *arguments, stdin="", limit_file_bytes=None, **variables):
        environment = dict(os.environ, NEEDLE_HOME=str(cls.home), HF_HUB_OFFLINE="1", **variables)

        def limit():
            if limit_file_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_bytes, limit_file_bytes))

        return subprocess.run([str(BIN / program), *map(str, arguments)], input=stdin, capture_output=True, text=True,
                              env=environment, cwd=cls.folder, preexec_fn=limit, timeout=300)

    @staticmethod
    def check(done):
        if done.returncode != 0:
            raise AssertionError(f"{done.args}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def refuse(self, code, words, program, *arguments, **options):
        """The program ends with this exit code and a message that holds each of these words."""
        done = self.run_program(program, *arguments, **options)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertNotIn("terminate called", done.stderr)
        return done

    def finetune(self, data, output, *more):
        return ("needle-train", "finetune", data, "--checkpoint", self.base, "-o", output, "--set", "train.max_steps=3",
                "--set", "train.batch_size=2", "--set", "train.device=cpu", "--set", "data.rows.prompt.max_enc_len=512",
                "--set", "data.rows.prompt.max_dec_len=128", "--set", "validate.generate_rows=2", *more)

    def test_every_program_explains_itself_and_refuses_unknown_flags(self):
        for program in ("needle-train", "needle-data", "needle-export", "needle-eval", "needle-run"):
            self.assertIn("Exit codes", self.check(self.run_program(program, "--help")).stdout)
            self.refuse(2, [f"{program}: there is no option --no-such-flag", f"{program} --help"], program, "--no-such-flag")
            version = self.check(self.run_program(program, "--version")).stdout
            self.assertRegex(version, rf"^{program} \d+\.\d+\.\d+\n$")

    def test_wrong_usage_is_told_with_what_was_expected(self):
        self.refuse(2, ["a subcommand is missing: pretrain, finetune"], "needle-train")
        self.refuse(2, ['there is no subcommand "finetun"', "did you mean finetune?"], "needle-train", "finetun", self.rows)
        self.refuse(2, ["Subcommands: pretrain, finetune"], "needle-train", "qqq")
        self.refuse(2, ["needle-train finetune: data is missing: JSONL file of rows"], "needle-train", "finetune")
        self.refuse(2, ["there is no option --modle; did you mean --model?"], "needle-run", "--modle=x")
        self.refuse(2, ["needle-run bench: there is no option --thread;", "--threads?", "needle-run bench --help"],
                    "needle-run", "bench", "--thread", "3")
        self.refuse(2, ['one argument too many: "b"'], "needle-export", "export", "a", "b")
        self.refuse(2, ["needle-eval calls: --constrain", "grammar"], "needle-eval", "calls", "--constrain", "most")

    def test_readme_shows_the_examples_as_they_are_compiled(self):
        readme = (SOURCE / "README.md").read_text()
        for example in (SOURCE / "apps" / "examples").glob("*.cpp"):
            self.assertIn(example.read_text().strip(), readme, f"{example} differs from README.md")

    def test_validations_are_answered_by_the_exported_engine_where_it_can_be_written(self):
        temporary = self.folder / "temporary"
        temporary.mkdir()
        words = self.finetune(self.rows, self.folder / "validated", "--set", "validate.generate_with=engine")
        done = self.check(self.run_program(*words, TMPDIR=str(temporary)))
        self.assertNotIn("LibTorch answers", done.stderr)
        self.assertEqual(list(temporary.iterdir()), [])
        words = self.finetune(self.rows, self.folder / "validated-by-libtorch")
        done = self.check(self.run_program(*words, TMPDIR=str(self.folder / "absent")))
        self.assertIn("set TMPDIR to one that exists); LibTorch answers", done.stderr)

    def test_the_whole_road(self):
        run = self.folder / "road"
        done = self.check(self.run_program(*self.finetune(self.rows, run, "--json")))
        records = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertTrue(any("finetuned" in json.dumps(record) for record in records))
        self.assertNotIn("NaN", done.stdout)
        for name in ("loss.svg", "metrics.jsonl", "bundle/report.md", "bundle/tools.json", "bundle/tokenizer.model"):
            self.assertTrue((run / name).exists(), name)
        weights = self.folder / "road.needle"
        self.check(self.run_program("needle-export", "export", run, "-o", weights))
        for path in (weights, run, run / "bundle" / "model.safetensors"):
            json.loads(self.check(self.run_program("needle-export", "inspect", path, "--json")).stdout)
        one = self.check(self.run_program("needle-run", "--model", weights, "--tools", TOOLS, "--max-gen-len", "24",
                                          "--query", "wake me at 7", "--json"))
        json.loads(one.stdout)
        two = self.check(self.run_program("needle-run", "--model", weights, "--tools", TOOLS, "--max-gen-len", "24", "--json",
                                          stdin="wake me at 7\nplay something\n"))
        self.assertEqual(len(two.stdout.splitlines()), 2)
        ranked = self.check(self.run_program("needle-run", "retrieve", "--model", weights, "--tools", TOOLS, "--query", "rain"))
        self.assertTrue(ranked.stdout.strip())
        agreement = {}
        for name, model in (("runtime", weights), ("libtorch", run)):
            agreement[name] = self.check(self.run_program("needle-eval", "calls", "--model", model, "--data", self.rows,
                                                          "--limit", "4", "--max-gen-len", "16", "--json")).stdout
            json.loads(agreement[name])

    def test_one_row_trains_and_no_number_is_nan(self):
        one = self.folder / "one.jsonl"
        one.write_text(self.rows.read_text().splitlines()[0] + "\n")
        run = self.folder / "one"
        done = self.check(self.run_program(*self.finetune(one, run)))
        self.assertNotIn("nan", (done.stdout + done.stderr).lower())
        self.assertNotIn("nan", (run / "metrics.jsonl").read_text().lower())

    def test_one_row_from_scratch_shrinks_the_vocabulary(self):
        one = self.folder / "one_scratch.jsonl"
        one.write_text(self.rows.read_text().splitlines()[0] + "\n")
        done = self.check(self.run_program("needle-train", "finetune", one, "--checkpoint", "none", "--model-config", "tiny",
                                           "-o", self.folder / "one_scratch", "--set", "train.max_steps=2"))
        self.assertIn("pieces: the vocabulary is that small", done.stderr)
        self.assertNotIn("nan", (done.stdout + done.stderr).lower())

    def test_bad_data(self):
        out = self.folder / "bad"
        self.refuse(1, ["missing.jsonl"], *self.finetune("missing.jsonl", out))
        self.refuse(1, ["missing.jsonl"], "needle-train", "finetune", "missing.jsonl", "-o", out)  # before looking for weights
        empty = self.folder / "empty.jsonl"
        empty.write_text("")
        self.refuse(1, ["empty.jsonl"], *self.finetune(empty, out))
        broken = self.folder / "broken.jsonl"
        broken.write_text(self.rows.read_text().splitlines()[0] + '\n{"query": "x", \n')
        self.refuse(1, ["broken.jsonl:2"], *self.finetune(broken, out))
        self.refuse(1, [], "needle-data", "check", broken)
        wrong = self.folder / "wrong.jsonl"
        wrong.write_text('{"query": 5, "tools": [], "answers": []}\n')
        self.refuse(1, ["wrong.jsonl:1", "query"], *self.finetune(wrong, out))

    def test_an_example_beyond_the_limits_is_counted(self):
        rows = self.rows.read_text().splitlines()[:30]
        long = json.loads(rows[0])
        long["answers"] = json.dumps([{"name": "send_message", "arguments": {"recipient": "Ann", "text": "word " * 400}}])
        data = self.folder / "long.jsonl"
        data.write_text("\n".join([*rows, *[json.dumps(dict(long, query=f"long {i}")) for i in range(30)]]) + "\n")
        done = self.check(self.run_program(*self.finetune(data, self.folder / "long")))
        self.assertIn("dropped", done.stdout + done.stderr)

    def test_bad_settings(self):
        out = self.folder / "settings"
        base = ("needle-train", "pretrain", self.config, "--data", self.text, "-o", out)
        self.refuse(2, ["train.batchsize", "batch_size"], *base, "--set", "train.batchsize=3")
        self.refuse(2, ["train.batch_size"], *base, "--set", "train.batch_size=many")
        self.refuse(2, ["num_heads"], *base, "--set", "model.num_heads=5")
        self.refuse(2, ["cuda"], *base, "--set", "train.device=cuda:7")
        unknown = self.folder / "unknown.json"
        unknown.write_text('{"trian": {}}')
        self.refuse(2, ["trian", "train"], "needle-train", "pretrain", unknown, "--data", self.text, "-o", out)
        syntax = self.folder / "syntax.json"
        syntax.write_text('{"train": {\n "seed": }}')
        self.refuse(1, ["syntax.json:2"], "needle-train", "pretrain", syntax, "--data", self.text, "-o", out)
        self.assertFalse((out / "checkpoints").exists())

    def test_bad_models(self):
        self.refuse(1, ["rows.jsonl"], "needle-run", "--model", self.rows, "--tools", TOOLS, "--query", "x")
        self.refuse(1, ["nothing.needle"], "needle-run", "--model", "nothing.needle", "--tools", TOOLS, "--query", "x")
        copy = self.folder / "copy"
        shutil.copytree(self.base, copy, symlinks=True)
        newest = sorted((copy / "checkpoints").glob("step-*"))[-1]
        other = self.folder / "other.model"
        self.check(self.run_program("needle-data", "train-tokenizer", self.rows, "-o", other, "--set", "vocab_size=390"))
        shutil.copy(other, newest / "tokenizer.model")
        for rest in sorted((copy / "checkpoints").glob("step-*"))[:-1]:
            shutil.rmtree(rest)
        done = self.run_program("needle-export", "export", copy, "-o", self.folder / "copy.needle")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertFalse((self.folder / "copy.needle").exists())

    def test_finetune_without_weights_says_where_to_get_them(self):
        done = self.run_program("needle-train", "finetune", self.rows, "-o", self.folder / "none")
        self.assertIn(done.returncode, (1, 2))
        self.assertIn("--checkpoint", done.stderr)

    def test_a_full_disk_loses_nothing(self):
        target = self.folder / "kept.jsonl"
        target.write_text("what was there before\n")
        self.refuse(1, ["kept.jsonl"], "needle-data", "synth", "--tools", TOOLS, "-n", "500", "-o", target,
                    limit_file_bytes=4096)
        self.assertEqual(target.read_text(), "what was there before\n")

    def test_ctrl_c_saves_and_resume_goes_on(self):
        run = self.folder / "stopped"
        command = [str(BIN / "needle-train"), "pretrain", str(self.config), "--data", str(self.text), "-o", str(run),
                   "--set", "train.max_steps=100000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
                                   env=dict(os.environ, NEEDLE_HOME=str(self.home)))
        deadline = time.time() + 120
        while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size) and time.time() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 130, errors)
        self.assertTrue(list((run / "checkpoints").glob("step-*")), errors)
        inspected = self.check(self.run_program("needle-export", "inspect", run, "--json"))
        json.loads(inspected.stdout)


if __name__ == "__main__":
    BIN = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main(verbosity=2)
