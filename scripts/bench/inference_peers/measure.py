"""What every peer is measured by: the metrics of `needle-run bench`, one JSON object a line.

A peer has load(threads) -> bytes of its files or None, start(tokens, max_tokens) -> session (encoder, cross
keys and values) and step(session, token) -> logits as a flat float32 array.
"""

import argparse
import json
import statistics
import time

import numpy as np

from weights import read_shape


def anonymous_megabytes():
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0


def probe_token(i, vocab):
    """The fixed tokens of `needle-run bench --logits`."""
    return 6 + i * 7919 % (vocab - 6)


def probe_logits(peer, vocab):
    session = peer.start([probe_token(i, vocab) for i in range(64)], 16)
    return np.stack([np.array(peer.step(session, 1 if i == 0 else probe_token(i, vocab))).reshape(-1)
                     for i in range(16)])


def timed(body, repeats, budget_s=2.0):
    """Median milliseconds; stops early once the budget is spent."""
    times, begin = [], time.perf_counter()
    while len(times) < repeats and (len(times) < 2 or time.perf_counter() - begin < budget_s):
        start = time.perf_counter()
        body()
        times.append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() - begin > 2 * budget_s:
            break
    return statistics.median(times)


def measure(peer, vocab, threads, repeats, decode_steps=64):
    random = np.random.default_rng(1)

    def prompt(count):
        return random.integers(6, vocab, count).tolist()

    def call(count, steps):
        session = peer.start(prompt(count), max(steps, 1))
        for _ in range(steps):
            peer.step(session, int(random.integers(6, vocab)))

    values = {}
    call(256, 2)  # warms up
    for count in (64, 256, 1024):
        values["prefill_tok_s_%d" % count] = 1e3 * count / timed(lambda: call(count, 0), repeats)
    starts = timed(lambda: call(256, 0), repeats)
    whole = timed(lambda: call(256, decode_steps), repeats)
    values["decode_tok_s"] = 1e3 * decode_steps / (whole - starts)
    values["ttft_ms_256"] = timed(lambda: call(256, 1), repeats)
    values["call_ms_200_30"] = timed(lambda: call(200, 30), repeats)
    return values


def main(name, make_peer):
    parser = argparse.ArgumentParser(description="Measures %s; started by scripts/bench/inference." % name)
    parser.add_argument("--files", required=True, help="folder that --prepare filled")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--variant", default="", help="which of the peer's models")
    parser.add_argument("--logits", help="only write the logits of the fixed steps, float32, to this file")
    options = parser.parse_args()
    peer = make_peer(options)
    vocab = read_shape(options.files).vocab
    peer.load(options.threads)  # reads the files once: then they are warm
    start = time.perf_counter()
    file_bytes = peer.load(options.threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    if options.logits:
        probe_logits(peer, vocab).astype(np.float32).tofile(options.logits)
        return
    values = measure(peer, vocab, options.threads, options.repeats)
    if file_bytes is not None:  # a peer that makes its weights instead of loading them has neither
        values["load_ms"] = load_ms
        values["file_mb"] = file_bytes / 1e6
    session = peer.start(np.random.default_rng(2).integers(6, vocab, 1024).tolist(), 64)
    peer.step(session, 1)
    values["anon_mb"] = anonymous_megabytes()
    for metric, value in values.items():
        print(json.dumps({"metric": metric, "threads": options.threads, "value": value}))
