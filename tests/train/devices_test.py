#!/usr/bin/env python3
"""The programs on a device of their own (walled_device.cpp): a stray access of the CPU to its memory ends a process.

usage: devices_test.py BIN_FOLDER PLUGIN_FOLDER [TestClass.test_name ...]
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import ranks_test
from ranks_test import CITIES, MODEL, PATIENCE_S, RanksTest

BIN = PLUGINS = pathlib.Path()
WALLED = ""


def rows(count):
    tools = json.dumps([
        {"name": "get_weather", "description": "weather", "parameters": {"city": {"type": "string", "required": True}}},
        {"name": "set_alarm", "description": "alarm", "parameters": {"hour": {"type": "integer", "required": True}}}])
    for i in range(count):
        city = CITIES[i % 8]
        query, calls = f"weather in {city} {i}", [{"name": "get_weather", "arguments": {"city": city}}]
        if i % 2:
            query, calls = f"wake me at {i % 12} not {i}", [{"name": "set_alarm", "arguments": {"hour": i % 12}}]
        yield {"query": query, "tools": tools, "answers": json.dumps(calls)}


class DeviceTest(RanksTest):
    """Runs are those of ranks_test.py: a micro model, eight steps, validation, checkpoints, quantised steps."""

    def setUp(self):
        super().setUp()
        self.ON_DEVICE = ("--device", "walled", "--device-plugin", WALLED)

    def environment(self, **extra):
        return super().environment(WALLED_REPORT=self.folder / "report.json", **extra)

    # Sums in another order: float32 rounding, larger after some steps. Where weights pass through INT4, one that lies
    # between two codes may take either.
    TOLERANCE = {"grad_norm": 1e-3, "perplexity_int4": 1e-2}

    def assert_close_run(self, a, b, tolerance=2e-5, steps=8):
        runs = [self.steps(name) for name in (a, b)]
        self.assertEqual(*[[(record["kind"], record["step"]) for record in run] for run in runs])
        self.assertEqual(sum(record["kind"] == "train" for record in runs[0]), steps)
        for one, other in zip(*runs):
            self.assertEqual(one.keys(), other.keys())
            for key in one.keys() - {"seconds", "tokens_per_second", "utilization", "data_wait_ms"}:
                if isinstance(one[key], float):
                    limit = max(self.TOLERANCE.get(key, 0), tolerance) * max(abs(one[key]), 1e-9)
                    self.assertLess(abs(one[key] - other[key]), limit, f"{key}: {one} {other}")
                else:
                    self.assertEqual(one[key], other[key], key)
        folders = [self.folder / name / "checkpoints" / f"step-{steps:06d}" for name in (a, b)]
        for file in ("model.safetensors", "optimizer.safetensors"):
            self.assertEqual(*[ranks_test.tensor_shapes(folder / file) for folder in folders])

    def report(self):
        return json.loads((self.folder / "report.json").read_text())

    def run_program(self, *words, **environment):
        return subprocess.run([str(word) for word in words], env=self.environment(**environment), timeout=300,
                              capture_output=True, text=True)

    def refused(self, *words, **environment):
        done = self.run_program(*words, **environment)
        self.assertEqual(done.returncode, 2, done.stderr)
        return done.stderr


class TrainingTest(DeviceTest):
    def test_trains_as_the_cpu_does(self):
        for attention in ("fused", "exact", "layers"):
            with self.subTest(attention=attention):
                settings = {"train__attention": attention, "step__quant__every": 0}
                self.train(f"cpu-{attention}", **settings)
                said = self.train(f"walled-{attention}", *self.ON_DEVICE, **settings)
                self.assertEqual("layers is for the CPU" in said, attention == "layers", said)
                self.assertGreater(self.report()["kernels"], 1000)
                self.assert_close_run(f"cpu-{attention}", f"walled-{attention}")
        self.train("cpu-quantized")
        self.train("walled-quantized", *self.ON_DEVICE)
        self.assert_close_run("cpu-quantized", "walled-quantized", tolerance=2e-3)

    def test_goes_on_bit_for_bit_and_elsewhere(self):
        settings = {"train__dropout": 0.1}
        self.train("whole", *self.ON_DEVICE, **settings)
        self.train("resumed", *self.ON_DEVICE, **settings)
        for step in ("000008", "000006"):  # as if it had ended after step 4
            folder = self.folder / f"resumed/checkpoints/step-{step}"
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        self.train("resumed", *self.ON_DEVICE, "--resume", **settings)
        self.assert_same_run("whole", "resumed", exact=True)
        # Stopped anywhere, with a step on its way: it is finished, and what is due behind it done.
        settings.update(train__max_steps=40, train__validate_every=2)
        self.train("long", *self.ON_DEVICE, **settings)
        process = self.start("stopped", *self.ON_DEVICE, **settings)
        self.wait_for_step("stopped", 5)
        process.terminate()
        said = process.communicate(timeout=PATIENCE_S)[1]
        self.assertEqual(process.returncode, 130, said)
        self.train("stopped", *self.ON_DEVICE, "--resume", **settings)
        self.assert_same_run("long", "stopped", exact=True, last=40)
        # A checkpoint is of no device.
        self.train("cpu")
        self.train("moving", *self.ON_DEVICE)
        for step in ("000008", "000006"):
            folder = self.folder / f"moving/checkpoints/step-{step}"
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        self.train("moving", "--device", "cpu", "--resume")
        self.assert_close_run("cpu", "moving", tolerance=2e-3)

    def test_the_second_device_and_bfloat16(self):
        self.train("first", *self.ON_DEVICE)
        said = self.train("second", "--device", "walled:1", "--device-plugin", WALLED)
        self.assertNotIn("two devices", said)
        self.assert_same_run("first", "second", exact=True)
        self.train("rounded", *self.ON_DEVICE, train__compute_dtype="bfloat16", train__max_steps=2)
        losses = [[record["loss"] for record in self.steps(name) if record["kind"] == "train"][:2]
                  for name in ("first", "rounded")]
        self.assertNotEqual(*losses)
        for one, other in zip(*losses):
            self.assertLess(abs(one - other), 0.02 * one)

    def test_a_device_that_fails_is_an_error_without_backtrace(self):
        self.train("whole", *self.ON_DEVICE)
        words = self.command("broken", *self.ON_DEVICE)
        fault = self.report()["kernels"] * 3 // 4  # behind a checkpoint
        done = self.run_program(*words, WALLED_FAULT=fault)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, rf"(?s)error: walled device: kernel {fault} failed\s*\Z")
        self.assert_good_checkpoint("broken")
        done = self.run_program(*words, "--resume", WALLED_FAULT=100, NEEDLE_LOG="debug")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("frame #0:", done.stderr)
        self.train("broken", *self.ON_DEVICE, "--resume")
        self.assert_same_run("whole", "broken", exact=True)

    def test_recorded_steps_learn_the_same(self):
        # Padding has a part in the z-loss, and recorded batches are padded further.
        settings = {"train__grad_accumulation": 1, "step__loss__z_loss": 0, "step__quant__every": 0}
        self.train("plain", *self.ON_DEVICE, **settings)
        self.assertEqual(self.report()["replays"], 0)
        self.train("recorded", *self.ON_DEVICE, train__record_steps="true", **settings)
        self.assertGreaterEqual(self.report()["replays"], 6)
        self.assert_close_run("plain", "recorded", tolerance=2e-4)
        said = self.refused(*self.command("cpu", train__record_steps="true"))
        self.assertIn("train.record_steps: cpu cannot record", said)

    def test_ranks_exchange_through_the_plug_ins_group(self):
        self.train("one", *self.ON_DEVICE)
        self.assertEqual(self.report()["exchanges"], 0)
        said = self.train("two", *self.ON_DEVICE, "--nproc", "2")
        self.assertNotIn("through host memory", said)
        self.assertGreater(self.report()["exchanges"], 8)
        self.assert_close_run("one", "two", tolerance=2e-3)


class AnswersTest(DeviceTest):
    def test_finetuning_validation_and_evaluation(self):
        data = self.folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
        words = ["finetune", data, "--checkpoint", "none", "--model-config", self.folder / "micro.json", "--json"]
        for key, value in {**ranks_test.SETTINGS, "data.cache": self.folder / "cache", "train.max_steps": 6,
                           "train.grad_accumulation": 1, "train.contrastive_rows": 4, "step.contrastive_every": 2,
                           "validate.generate_rows": 2, "validate.max_gen_len": 12, "validate.threads": 1}.items():
            if key != "train.device":
                words += ["--set", f"{key}={value}"]
        for name, where in (("cpu", ("--device", "cpu")), ("walled", self.ON_DEVICE)):
            done = self.run_program(BIN / "needle-train", *words, *where, "-o", self.folder / name)
            self.assertEqual(done.returncode, 0, done.stderr)
        for one, other in zip(self.steps("cpu"), self.steps("walled")):
            if one["kind"] == "train":
                self.assertLess(abs(one["loss"] - other["loss"]), 2e-5 * one["loss"], (one, other))
                self.assertEqual("contrastive" in one, "contrastive" in other)
        # The same checkpoint on both: answers, retrieval and perplexity.
        figures = {}
        for where in (("--device", "cpu"), self.ON_DEVICE):
            evaluation = []
            for command in ("calls", "perplexity"):
                extra = ["--max-gen-len", "16"] if command == "calls" else []
                done = self.run_program(BIN / "needle-eval", command, "--model", self.folder / "cpu", "--data", data,
                                        "--limit", "6", "--json", *extra, *where)
                self.assertEqual(done.returncode, 0, done.stderr)
                evaluation.append(json.loads(done.stdout))
            figures[where[1]] = evaluation
        self.assertGreater(self.report()["kernels"], 100)
        calls, perplexities = zip(*figures.values())
        for one, other in zip(*(self.leaves(report) for report in calls)):
            self.assertEqual(one, other)
        for key in ("perplexity", "perplexity_int8", "perplexity_int4"):
            self.assertLess(abs(perplexities[0][key] - perplexities[1][key]), 2e-5 * perplexities[0][key], key)

    def leaves(self, report, path=""):
        """Every figure except times."""
        if isinstance(report, dict):
            for key, value in report.items():
                if not any(word in key for word in ("second", "_ms", "ms_", "per_s", "latency")):
                    yield from self.leaves(value, f"{path}.{key}")
        elif isinstance(report, list):
            for i, value in enumerate(report):
                yield from self.leaves(value, f"{path}[{i}]")
        else:
            yield path, report


class PluginTest(DeviceTest):
    def test_names_what_is_there(self):
        said = self.refused(*self.command("run", "--device", "acme"))
        self.assertIn('device = "acme": no such name; there is auto, cpu', said)
        self.assertIn("--device-plugin", said)
        said = self.refused(*self.command("run", "--device", "walled:7", "--device-plugin", WALLED))
        self.assertIn("there is auto, cpu, walled:0, walled:1", said)

    def test_says_what_is_wrong_with_a_plug_in(self):
        plug_in = lambda path: self.command("run", "--device-plugin", str(path))
        self.assertIn("No such file", self.refused(*plug_in(self.folder / "none.so")))
        self.assertIn("invalid ELF header", self.refused(*plug_in(self.folder / "config.json")))
        self.assertIn("exports no needle_device_plugin", self.refused(*plug_in(PLUGINS / "libneedle_no_plugin.so")))
        self.assertIn("made for version 99", self.refused(*plug_in(PLUGINS / "libneedle_future_plugin.so")))
        self.assertIn(f"{WALLED}: it is on fire", self.refused(*plug_in(WALLED), WALLED_ERROR="it is on fire"))

    def test_the_environment_names_plug_ins_too(self):
        words = self.command("run", "--device", "walled", "--dry-run", "--json")
        done = self.run_program(*words, NEEDLE_DEVICE_PLUGIN=f":{WALLED}:{WALLED}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["device"], "walled:0")
        self.assertEqual(done.stderr.count("serves walled"), 1)

    def test_cuda_is_found_at_run_time(self):
        """Its libraries may be installed where no GPU is, or not be there at all."""
        done = self.run_program(*self.command("run", "--device", "cuda", "--dry-run"))
        if done.returncode != 0:
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertRegex(done.stderr, "it finds no GPU|cannot be loaded: lib|built without CUDA")

    def test_without_cuda_it_says_so(self):
        empty = self.folder / "libtorch_cuda.so"
        words = self.command("run", "--device", "cuda")
        self.assertIn("built without CUDA", self.refused(*words, NEEDLE_TORCH_CUDA=empty))
        empty.write_text("no library")
        said = self.refused(*words, NEEDLE_TORCH_CUDA=empty)
        self.assertIn("cannot be loaded", said)
        self.assertIn("scripts/setup --gpu", said)


def python_with_torch():
    """An interpreter whose torch is the programs' LibTorch, or why there is none. LibTorch for CPU runs is installed
    without the Python packages and libraries that `import torch` wants; the training benchmark's has them."""
    if not (BIN / "libneedle_python.so").exists():
        return None, "built without Python's development files (python3-dev)"
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "needle"
    given = os.environ.get("NEEDLE_PYTHON")
    reasons = []
    for python in [given] if given else [caches / "python/bin/python", caches / "bench-python/bin/python"]:
        done = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
        if done.returncode == 0:
            return str(python), ""
        reasons.append(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    return None, "; ".join(reasons)


class PythonTest(DeviceTest):
    """A device that Python registers, in the interpreter that a plug-in embeds."""

    def setUp(self):
        super().setUp()
        self.plugin = str(BIN / "libneedle_python.so")
        python, reason = python_with_torch()
        if python is None:
            self.skipTest(reason)
        self.python = {"NEEDLE_PYTHON": python, "NEEDLE_PYTHON_MODULE": "paper_device",
                       "PYTHONPATH": str(pathlib.Path(__file__).parent), "PAPER_REPORT": self.folder / "kernels"}

    def on_paper(self, *words):
        done = self.run_program(*words, "--device", "paper", "--device-plugin", self.plugin, **self.python)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_trains_goes_on_and_evaluates_as_the_cpu_does(self):
        settings = {"train__attention": "fused", "train__max_steps": 4, "step__quant__every": 0}
        self.train("cpu", **settings)
        for name in ("paper", "resumed"):
            self.on_paper(*self.command(name, **settings))
            self.assertTrue((self.folder / "kernels").read_text(), "fewer than a thousand kernels ran there")
        self.assert_close_run("cpu", "paper", steps=4)
        shutil.rmtree(self.folder / "resumed/checkpoints/step-000004")  # as if it had ended after step 2
        self.on_paper(*self.command("resumed", **settings), "--resume")
        self.assert_same_run("paper", "resumed", exact=True, last=4)

        data = self.folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(4)))
        words = [BIN / "needle-eval", "perplexity", "--model", self.folder / "paper", "--data", data, "--json"]
        done = self.run_program(*words, "--device", "cpu")
        self.assertEqual(done.returncode, 0, done.stderr)
        host, paper = json.loads(done.stdout), json.loads(self.on_paper(*words))
        for key in ("perplexity", "perplexity_int8", "perplexity_int4"):
            self.assertLess(abs(host[key] - paper[key]), 2e-5 * host[key], key)

    def test_says_what_python_says(self):
        words = self.command("run", "--device", "paper", "--device-plugin", self.plugin)
        said = self.refused(*words, **{**self.python, "NEEDLE_PYTHON_MODULE": ""})
        self.assertIn("NEEDLE_PYTHON_MODULE is not set", said)
        said = self.refused(*words, **{**self.python, "NEEDLE_PYTHON_MODULE": "no_such_module"})
        self.assertIn("ModuleNotFoundError: No module named 'no_such_module'", said)
        said = self.refused(*words, **{**self.python, "NEEDLE_PYTHON_MODULE": "json"})
        self.assertIn("the module json registered no device", said)

    def test_the_programs_do_not_link_python(self):
        for program in ("needle-train", "needle-eval"):
            done = self.run_program("ldd", BIN / program)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotIn("libpython", done.stdout)


if __name__ == "__main__":
    BIN, PLUGINS = (pathlib.Path(path) for path in sys.argv[1:3])
    ranks_test.PROGRAM = str(BIN / "needle-train")
    WALLED = str(PLUGINS / "libneedle_walled_device.so")
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
