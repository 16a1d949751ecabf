#!/usr/bin/env python3
"""needle-train in several processes on this host: same losses, resuming, ranks that die or hang.

usage: ranks_test.py BIN_FOLDER [TestClass.test_name ...]
"""
import hashlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = CLOCK_JUMP = ""
# A rank is given up after so long without a sign of life (train.rank_silence_s), plus two beats of a second each and
# what a busy machine takes to start and end processes.
SILENCE_S = 5
PATIENCE_S = 60

CITIES = "oslo rome lima cairo paris delhi quito accra".split()
MODEL = {
    "vocab_size": 340, "d_model": 32, "num_heads": 2, "num_kv_heads": 1, "num_encoder_layers": 1,
    "num_decoder_layers": 1, "d_ff": 64, "max_seq_len": 512, "contrastive_dim": 8,
}
SETTINGS = {
    "tokenizer.train.num_threads": 1, "data.rows.prompt.max_enc_len": 128, "data.rows.prompt.max_dec_len": 48,
    "data.validation_rows": 6, "train.device": "cpu", "train.batch_size": 7, "train.grad_accumulation": 2,
    "train.validate_every": 3, "train.checkpoint_every": 2, "train.log_every": 1, "step.quant.every": 3,
    "train.max_steps": 8, "validate.batch_rows": 2, "train.rank_silence_s": SILENCE_S,
    # Equal to rounding: that of float32, whatever is faster on this CPU.
    "train.compute_dtype": "float32", "optimizer.muon.newton_schulz_dtype": "float32",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hosts_allowed():
    """Whether two network namespaces can play two hosts here."""
    try:
        probe = ["unshare", "--net", "--mount", "--uts", "sh", "-c",
                 "ip link add name end0 type veth peer name end1 && mount --bind /etc/hosts /etc/hosts && ip netns list"]
        return os.geteuid() == 0 and subprocess.run(probe, capture_output=True).returncode == 0
    except OSError:
        return False


def tensor_shapes(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: (info["dtype"], info["shape"]) for name, info in header.items() if name != "__metadata__"}


class RanksTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)
        with open(self.folder / "text.jsonl", "w", encoding="utf-8") as file:
            for i in range(60):
                city = CITIES[i % 8]
                file.write(json.dumps({"query": f"say {city} {i}", "query_seed_text": "towns" if i % 3 else "",
                                       "synthetic_answer": f"{city} is number {i}"}) + "\n")
        (self.folder / "micro.json").write_text(json.dumps(MODEL))
        (self.folder / "config.json").write_text(json.dumps({
            "model": "micro.json", "tokenizer": {"train": {"json_symbols": ["default"]}},
            "data": {"rows": {"kind": "pretrain"}}}))

    def command(self, name, *arguments, **settings):
        settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        words = [PROGRAM, "pretrain", str(self.folder / "config.json"), "--data", str(self.folder / "text.jsonl"),
                 "-o", str(self.folder / name), "--set", f"data.cache={self.folder / 'cache'}"]
        for key, value in settings.items():
            words += ["--set", f"{key}={value}"]
        return words + list(arguments)

    @staticmethod
    def environment(**extra):
        keep = {key: value for key, value in os.environ.items()
                if not re.match(r"(RANK|WORLD_SIZE|LOCAL_|MASTER_|SLURM_|OMPI_|PMI_|TORCHELASTIC_)", key)}
        return {**keep, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in extra.items()}}

    def train(self, name, *arguments, **settings):
        done = subprocess.run(self.command(name, *arguments, **settings), env=self.environment(), timeout=300,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stderr

    def start(self, name, *arguments, variables=None, **settings):
        process = subprocess.Popen(self.command(name, *arguments, **settings), env=self.environment(**(variables or {})),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end, process)
        return process

    def start_ranks(self, name, world, variables, **settings):
        """Ranks that another launcher started: one process each."""
        port = free_port()
        processes = []
        for rank in range(world):
            env = self.environment(**variables(rank, world, port))
            process = subprocess.Popen(self.command(name, **settings), env=env, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
            self.addCleanup(self.end, process)
            processes.append(process)
        return processes

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()

    def steps(self, name):
        path = self.folder / name / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                pass  # being written
        return records

    def wait_for_step(self, name, step):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if any(record.get("step", 0) >= step for record in self.steps(name)):
                return
            time.sleep(0.02)
        self.fail(f"{name} did not reach step {step}")

    def children(self, process):
        """Process ids of the launcher's ranks, by rank."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = {}
            path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for pid in path.read_text().split():
                try:
                    env = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                match = re.search(r"(?:^|\0)RANK=(\d+)\0", env)
                if match:
                    found[int(match[1])] = int(pid)
            if len(found) >= 2:
                return found
            time.sleep(0.02)
        self.fail("no ranks were started")

    def assert_same_run(self, a, b, exact, last=8, abandoned=0):
        metrics = []
        for name in (a, b):
            records = self.steps(name)
            for record in records:
                record.pop("seconds", None)
                record.pop("tokens_per_second", None)
                record.pop("utilization", None)
                record.pop("data_wait_ms", None)
            metrics.append(records)
        self.assertEqual(len(metrics[0]), len(metrics[1]))
        self.assertEqual(sum(record["kind"] == "train" for record in metrics[0]), last + abandoned)
        for one, other in zip(*metrics):
            self.assertEqual(one.keys(), other.keys())
            for key, value in one.items():
                if key == "reason" and not exact:
                    continue  # several ranks name the bad ones
                if exact or not isinstance(value, float):
                    self.assertEqual(value, other[key], f"{key} of {one} and {other}")
                else:  # sums in another order: float32 rounding, larger after some steps
                    tolerance = 1e-3 if key == "grad_norm" else 2e-5
                    self.assertLess(abs(value - other[key]), tolerance * max(abs(value), 1e-9), f"{key}: {one} {other}")
        folders = [self.folder / name / f"checkpoints/step-{last:06d}" for name in (a, b)]
        self.assertEqual(sorted(os.listdir(folders[0])), sorted(os.listdir(folders[1])))
        for file in ("model.safetensors", "optimizer.safetensors"):
            self.assertEqual(*[tensor_shapes(folder / file) for folder in folders])
            if exact:
                self.assertEqual(*[hashlib.sha256((folder / file).read_bytes()).hexdigest() for folder in folders])

    def assert_good_checkpoint(self, name):
        newest = (self.folder / name / "checkpoints/latest").read_text().strip()
        folder = self.folder / name / "checkpoints" / newest
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for file, info in files.items():
            self.assertEqual(hashlib.sha256((folder / file).read_bytes()).hexdigest(), info["sha256"])


class SameResultTest(RanksTest):
    def test_one_two_and_four_ranks_learn_the_same(self):
        self.train("one")
        for ranks in (2, 4):
            self.train(f"ranks{ranks}", "--nproc", str(ranks))
            self.assert_same_run("one", f"ranks{ranks}", exact=False)
        self.train("again", "--nproc", "2")
        self.assert_same_run("ranks2", "again", exact=True)

    def test_gloo_and_shared_memory_give_the_same(self):
        for ranks in (2, 4):
            log = self.train(f"shared{ranks}", "--nproc", str(ranks))
            self.assertIn("exchange: shared", log)
            log = self.train(f"gloo{ranks}", "--nproc", str(ranks), train__exchange="gloo")
            self.assertIn("exchange: gloo", log)
            # Four numbers are added in another order.
            self.assert_same_run(f"shared{ranks}", f"gloo{ranks}", exact=ranks == 2)

    def test_without_memory_to_share_gloo_takes_over(self):
        """A limit on the size of files, which shared memory is one of: it holds a checkpoint, not what ranks share."""
        self.train("shared", "--nproc", "2")
        limited = ["prlimit", "--fsize=400000"]
        for exchange, code in (("auto", 0), ("shared", 1)):
            words = limited + self.command(exchange, "--nproc", "2", train__exchange=exchange)
            done = subprocess.run(words, env=self.environment(), timeout=300, capture_output=True, text=True)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertRegex(done.stderr, r"share no memory \(rank 0: \d+ bytes are above the limit for files \(ulimit -f\)")
        self.assertEqual(done.stderr.count("train.exchange=shared"), 2, done.stderr)
        self.assert_same_run("shared", "auto", exact=True)

    def test_micro_batches_learn_the_same(self):
        self.train("one")
        self.train("parts", train__micro_batch=2)
        self.assert_same_run("one", "parts", exact=False)
        self.train("ranks", "--nproc", "2", train__micro_batch=3)
        self.assert_same_run("one", "ranks", exact=False)
        log = self.train("auto", "--nproc", "2", train__micro_batch="auto")  # everything fits
        self.assertIn("micro-batch: 4 of 4 rows", log)
        self.assert_same_run("one", "auto", exact=False)

    def test_another_number_of_ranks_goes_on(self):
        self.train("one")
        self.train("changing", "--nproc", "2", train__max_steps=8, train__checkpoint_every=3)
        for step in ("000008", "000006"):  # as if it had ended after step 3
            folder = self.folder / f"changing/checkpoints/step-{step}"
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        self.train("changing", "--nproc", "3", "--resume", train__checkpoint_every=4)
        self.assert_same_run("one", "changing", exact=False)

    def test_all_ranks_go_back_when_numbers_are_not_finite(self):
        """Adam's rate grows beyond all bounds until there are NaN; after the roll-back it is a sane one."""
        settings = {"optimizer__adam__peak_lr": 1e37, "optimizer__schedule__warmup_steps": 6, "train__max_bad_steps": 2,
                    "train__checkpoint_every": 1, "train__validate_every": 1000, "train__spike__lr_factor": 1e-41,
                    "train__spike__lr_steps": 0, "train__max_steps": 60}
        for name, arguments in (("one", []), ("two", ["--nproc", "2"])):
            log = self.train(name, *arguments, **settings)
            self.assertIn("roll-back 1 of 5", log)
            rollbacks = [record for record in self.steps(name) if record["kind"] == "rollback"]
            self.assertEqual([(record["step"], record["from_step"]) for record in rollbacks], [(1, 4)])
        self.assert_same_run("one", "two", exact=False, last=60, abandoned=3)
        process = self.start("restarted", "--nproc", "2", "--max-restarts", "1", **settings)
        self.wait_for_step("restarted", 9)
        os.kill(self.children(process)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=2 * PATIENCE_S)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn("going on from", errors)
        self.assert_same_run("two", "restarted", exact=True, last=60, abandoned=3)

    def test_ranks_with_batches_of_their_own_keep_their_number(self):
        self.train("own", "--nproc", "2", train__batch_scope="rank", train__batch_size=3)
        rates = [record["adam_lr"] for record in self.steps("own") if record["kind"] == "train"]
        self.assertAlmostEqual(max(rates), 2 * 3e-4, delta=1e-9)
        rates = [record["muon_lr"] for record in self.steps("own") if record["kind"] == "train"]
        self.assertAlmostEqual(max(rates), 2**0.5 * 0.02, delta=1e-6)
        done = subprocess.run(self.command("own", "--resume", train__batch_scope="rank", train__batch_size=3),
                              env=self.environment(), capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("trained by 2 processes", done.stderr)

    def test_other_launchers(self):
        self.train("launched", "--nproc", "2")
        launchers = {
            "torchrun": lambda rank, world, port: {
                "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            "srun": lambda rank, world, port: {
                "SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": world, "SLURM_LOCALID": rank,
                "SLURM_JOB_NODELIST": "localhost", "MASTER_PORT": port},
            "mpirun": lambda rank, world, port: {
                "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": world, "OMPI_COMM_WORLD_LOCAL_RANK": rank,
                "OMPI_COMM_WORLD_LOCAL_SIZE": world, "MASTER_PORT": port},
        }
        for name, variables in launchers.items():
            with self.subTest(launcher=name):
                processes = self.start_ranks(name, 2, variables)
                for process in processes:
                    _, errors = process.communicate(timeout=PATIENCE_S)
                    self.assertEqual(process.returncode, 0, errors)
                self.assert_same_run("launched", name, exact=True)


@unittest.skipUnless(hosts_allowed(), "needs the right to make network and mount namespaces (root)")
class HostsTest(RanksTest):
    """Two network namespaces as two hosts, whose own names lead to the loopback, as on Debian."""

    def setUp(self):
        super().setUp()
        self.prefix = f"nt{os.getpid()}"
        self.addresses = ["10.213.77.1", "10.213.77.2"]
        for host in (0, 1):
            space = f"{self.prefix}h{host}"
            subprocess.run(["ip", "netns", "add", space], check=True)
            self.addCleanup(subprocess.run, ["ip", "netns", "delete", space])
        ends = [word for host in (0, 1)
                for word in (["peer"] if host else []) + ["name", "eth0", "netns", f"{self.prefix}h{host}"]]
        subprocess.run(["ip", "link", "add", *ends[:4], "type", "veth", *ends[4:]], check=True)
        for host in (0, 1):
            inside = ["ip", "-n", f"{self.prefix}h{host}"]
            subprocess.run([*inside, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0"], check=True)
            for link in ("lo", "eth0"):
                subprocess.run([*inside, "link", "set", link, "up"], check=True)
            names = ["127.0.0.1 localhost", f"127.0.1.1 host{host}", f"{self.addresses[1 - host]} host{1 - host}"]
            (self.folder / f"hosts{host}").write_text("\n".join(names) + "\n")

    def start_on(self, host, name, variables, **settings):
        enter = f'mount --bind "$0" /etc/hosts && hostname host{host} && exec "$@"'
        words = ["ip", "netns", "exec", f"{self.prefix}h{host}", "unshare", "--mount", "--uts", "sh", "-c", enter,
                 str(self.folder / f"hosts{host}"), *self.command(name, **settings)]
        process = subprocess.Popen(words, env=self.environment(**variables), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end, process)
        return process

    def check(self, name, places, variables):
        """places: of each rank, its host and its number there; variables(rank, world, host, local rank, ranks there)."""
        processes = []
        for rank, (host, local) in enumerate(places):
            there = sum(place[0] == host for place in places)
            processes.append(self.start_on(host, name, variables(rank, len(places), host, local, there)))
        for process in processes:
            _, errors = process.communicate(timeout=2 * PATIENCE_S)
            self.assertEqual(process.returncode, 0, errors)

    @staticmethod
    def torchrun(rank, world, _, local, there):
        return {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": there,
                "MASTER_ADDR": "host0", "MASTER_PORT": 29517}  # nobody else lives in these namespaces

    def test_two_hosts_learn_the_same_as_one_process(self):
        self.train("one")
        self.check("hosts", [(0, 0), (1, 0)], self.torchrun)
        self.assert_same_run("one", "hosts", exact=False)

    def test_hosts_may_differ_in_their_ranks(self):
        # Three numbers are added in the same order only by the same means.
        self.train("local", "--nproc", "3", train__exchange="gloo")
        cases = {
            "torchrun": self.torchrun,
            "address": lambda *place: {**self.torchrun(*place), "MASTER_ADDR": self.addresses[0]},
            "interface": lambda *place: {**self.torchrun(*place), "GLOO_SOCKET_IFNAME": "eth0"},
            "srun": lambda rank, world, host, local, _: {
                "SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": world, "SLURM_LOCALID": local, "SLURM_NODEID": host,
                "SLURM_STEP_NODELIST": "host[0-1]", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": 7},
            "mpirun": lambda rank, world, _, local, there: {
                "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": world, "OMPI_COMM_WORLD_LOCAL_RANK": local,
                "OMPI_COMM_WORLD_LOCAL_SIZE": there, "MASTER_ADDR": "host0"},
        }
        for name, variables in cases.items():
            with self.subTest(launcher=name):
                self.check(name, [(0, 0), (0, 1), (1, 0)], variables)
                self.assert_same_run("local", name, exact=True)

    def test_an_interface_that_is_not_there_is_named(self):
        process = self.start_on(0, "wrong", {
            "RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "host0",
            "GLOO_SOCKET_IFNAME": "ib7"})
        _, errors = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 2, errors)
        self.assertIn("GLOO_SOCKET_IFNAME=ib7", errors)


class FaultTest(RanksTest):
    LONG = {"train__max_steps": 200000, "train__validate_every": 100000, "train__checkpoint_every": 5,
            "train__log_every": 100000}

    def test_a_killed_rank_ends_the_others_and_is_named(self):
        process = self.start("killed", "--nproc", "2", **self.LONG)
        self.wait_for_step("killed", 12)
        os.kill(self.children(process)[1], signal.SIGKILL)
        start = time.monotonic()
        _, errors = process.communicate(timeout=PATIENCE_S)
        self.assertLess(time.monotonic() - start, 20.0)
        self.assertEqual(process.returncode, 1)
        self.assertRegex(errors, r"rank 1 \(pid \d+\) was killed by signal 9")
        self.assert_good_checkpoint("killed")

    def test_a_restart_ends_bit_equal(self):
        self.train("whole", "--nproc", "2", train__max_steps=60)
        process = self.start("restarted", "--nproc", "2", "--max-restarts", "1", train__max_steps=60)
        self.wait_for_step("restarted", 7)
        os.kill(self.children(process)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=2 * PATIENCE_S)
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn("restart 1 of 1", errors)
        self.assertIn("going on from", errors)
        self.assert_same_run("whole", "restarted", exact=True, last=60)

    def check_without_launcher(self, name, stop, culprit, message, **settings):
        """The survivors find out by themselves, as under torchrun or srun on other hosts."""
        processes = self.start_ranks(name, 2, lambda rank, world, port: {
            "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, **self.LONG, **settings)
        self.wait_for_step(name, 12)
        os.kill(processes[culprit].pid, stop)
        start = time.monotonic()
        survivor = processes[1 - culprit]
        _, errors = survivor.communicate(timeout=PATIENCE_S)
        self.assertLess(time.monotonic() - start, SILENCE_S + 20.0)
        self.assertEqual(survivor.returncode, 1, errors)
        self.assertRegex(errors, message)
        self.assert_good_checkpoint(name)

    def test_a_killed_rank_is_noticed_without_a_launcher(self):
        self.check_without_launcher("killed", signal.SIGKILL, 1, r"rank 1 \(pid \d+ on \S+\) gave no sign of life")

    def test_a_killed_rank_is_noticed_through_gloo(self):
        self.check_without_launcher("gloo", signal.SIGKILL, 1, r"rank 1 \(pid \d+ on \S+\) gave no sign of life",
                                    train__exchange="gloo")

    def test_a_killed_first_rank_is_noticed_without_a_launcher(self):
        self.check_without_launcher("first", signal.SIGKILL, 0, r"rank 0")

    def test_a_frozen_rank_is_noticed(self):
        self.check_without_launcher("frozen", signal.SIGSTOP, 1, r"rank 1 \(pid \d+ on \S+\) gave no sign of life")

    def test_a_frozen_first_rank_is_noticed(self):
        self.check_without_launcher("frozen0", signal.SIGSTOP, 0, r"rank 0")

    def test_sigterm_saves_and_resumes(self):
        process = self.start("stopped", "--nproc", "2", **{**self.LONG, "train__checkpoint_every": 100000})
        self.wait_for_step("stopped", 12)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        self.assertLess(time.monotonic() - start, 20.0)
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("everything is saved", errors)
        self.assert_good_checkpoint("stopped")

    def test_a_rank_that_cannot_save_tells_why(self):
        settings = {**self.LONG, "train__checkpoint_every": 100000}
        process = self.start("full", "--nproc", "2", **settings)
        self.wait_for_step("full", 12)
        (self.folder / "full/checkpoints").write_text("in the way")  # as a disk that takes nothing
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 1, errors)
        self.assertRegex(errors, r"checkpoints: cannot be made")
        # The store ends with rank 0, so rank 1 may not learn the reason in time; the launcher names the rank in any case.
        self.assertRegex(errors, r"rank 0 \(pid \d+[^)]*\) (ended with exit code 1|stopped: .*checkpoints)")

    def test_a_full_disk_is_said_and_the_run_goes_on(self):
        """A file system that takes two checkpoints and no third; then somebody makes room."""
        settings = {"train__max_steps": 40, "train__keep_checkpoints": 20, "train__validate_every": 20}
        self.train("whole", **settings)
        disk = self.folder / "disk"
        disk.mkdir()
        words = [word.replace(str(self.folder / "full"), str(disk / "full")) for word in self.command("full", **settings)]
        script = f"""mount -t tmpfs -o size=600k none {disk} || exit 77
            {shlex.join(words)}; echo $? > {self.folder}/first
            ls {disk}/full/checkpoints > {self.folder}/kept
            mount -o remount,size=100m {disk}
            {shlex.join(words)} --resume; echo $? > {self.folder}/second
            cp -r {disk}/full {self.folder}/full"""
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], env=self.environment(), timeout=300,
                              capture_output=True, text=True)
        if done.returncode in (1, 77) and not (self.folder / "first").exists():
            self.skipTest(f"no file system can be mounted here: {done.stderr.strip()}")
        self.assertEqual((self.folder / "first").read_text().strip(), "1", done.stderr)
        self.assertRegex(done.stderr, r"error: \S+: cannot write: No space left on device; free some space")
        kept = (self.folder / "kept").read_text().split()
        self.assertIn("step-000002", kept)
        self.assertNotIn("step-000040", kept)
        self.assertEqual((self.folder / "second").read_text().strip(), "0", done.stderr)
        self.assertIn("going on from", done.stderr)
        self.assert_same_run("whole", "full", exact=True, last=40)

    def test_the_clock_of_the_day_may_jump(self):
        self.train("whole", "--nproc", "2", train__max_steps=60)
        for name, seconds in (("ahead", 86400), ("back", -86400)):
            when = self.folder / f"{name}.jumps"
            process = self.start(name, "--nproc", "2", train__max_steps=60,
                                 variables={"LD_PRELOAD": CLOCK_JUMP, "CLOCK_JUMP_WHEN": when, "CLOCK_JUMP_S": seconds})
            self.wait_for_step(name, 5)
            when.touch()
            _, errors = process.communicate(timeout=PATIENCE_S)
            self.assertEqual(process.returncode, 0, errors)
            self.assertTrue((self.folder / f"{name}.jumps.seen").exists(), "nobody looked at the clock")
            self.assert_same_run("whole", name, exact=True, last=60)

    def test_a_slow_rank_is_named_and_the_run_goes_on(self):
        process = self.start("slow", "--nproc", "2", **{**self.LONG, "train__checkpoint_every": 100000})
        self.wait_for_step("slow", 5)
        slow = self.children(process)[1]
        end = time.monotonic() + 20
        while time.monotonic() < end:  # a quarter of the time
            os.kill(slow, signal.SIGSTOP)
            time.sleep(0.12)
            os.kill(slow, signal.SIGCONT)
            time.sleep(0.04)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 130, errors)
        self.assertRegex(errors, r"warning: rank 1 \(pid \d+ on \S+\) is slow: \d+ ms of work a step")

    def test_wrong_settings_are_not_tried_again(self):
        done = subprocess.run(self.command("wrong", "--nproc", "2", "--max-restarts", "5", train__batch_size=0),
                              env=self.environment(), capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertNotIn("restart 1", done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    PROGRAM = os.path.join(os.path.abspath(sys.argv[1]), "needle-train")
    CLOCK_JUMP = os.path.abspath(os.path.join(sys.argv[1], "../plugins/libneedle_clock_jump.so"))
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
