#!/usr/bin/env python3
"""needle-rs (one thread, no cache between calls): the same weights in its own format.

It offers whole calls alone, so prefill is a call that may write nothing, decoding the difference between a
call of 64 tokens and that, of a prompt of 64: after longer ones the difference drowns in their own. Weights are its INT4 with float32 scales, the embedding bfloat16.
"""

import argparse
import json
import os
import statistics
import struct
import sys
import time

import numpy as np

import measure
from weights import read_weights


def int4(weights):
    """[out, in] -> its packed rows and scales."""
    w = weights.T  # [in, out]
    groups = w.reshape(-1, 32, w.shape[1])
    scales = np.maximum(np.abs(groups).max(axis=1) / 7, 1e-8).astype(np.float32)
    codes = np.clip(np.rint(groups / scales[:, None]), -8, 7).astype(np.int8).reshape(-1, 2, w.shape[1])
    packed = (codes[:, 0].view(np.uint8) & 15) | (codes[:, 1].view(np.uint8) & 15) << 4
    return packed, scales


def prepare(folder, max_dec_len):
    config, arrays = read_weights(os.path.join(folder, "model.needle"))
    tensors = {}

    def add(name, array, dtype="F32"):
        tensors[name] = (dtype, array.shape, np.ascontiguousarray(array))

    def attention(prefix, to):
        for letter, key in (("q_proj", "wq"), ("k_proj", "wk"), ("v_proj", "wv"), ("out_proj", "wo")):
            packed, scales = int4(arrays[prefix + "attention.%s.weight" % letter])
            add(to + "." + key, packed, "I4")
            add(to + "." + key + ".scale", scales)
        for norm in ("q_norm", "k_norm"):
            add(to + "." + norm, arrays[prefix + "attention.%s.scale" % norm])

    # Tied random weights answer every token with itself, so the first eos would end all: here it has no logit.
    arrays["embedding.weight"][1] = 0
    add("embedding", (arrays["embedding.weight"].view(np.uint32) + 0x8000 >> 16).astype(np.uint16), "BF16")
    add("encoder_final_norm", arrays["encoder.final_norm.scale"])
    add("decoder_final_norm", arrays["decoder.final_norm.scale"])
    for i in range(config["num_encoder_layers"]):
        prefix = "encoder.layers.%d.self_attn." % i
        add("encoder.%d.norm" % i, arrays[prefix + "norm.scale"])
        add("encoder.%d.self_attn_gate" % i, arrays[prefix + "gate"].reshape(1))
        attention(prefix, "encoder.%d.self_attn" % i)
    for i in range(config["num_decoder_layers"]):
        for kind in ("self_attn", "cross_attn"):
            prefix = "decoder.layers.%d.%s." % (i, kind)
            add("decoder.%d.%s_norm" % (i, kind), arrays[prefix + "norm.scale"])
            add("decoder.%d.%s_gate" % (i, kind), arrays[prefix + "gate"].reshape(1))
            attention(prefix, "decoder.%d.%s" % (i, kind))
    metadata = {key: str(config[key]) for key in ("d_model", "num_heads", "num_kv_heads", "num_encoder_layers",
                                                  "num_decoder_layers", "vocab_size", "no_feedforward", "rope_theta")}
    metadata.update(max_enc_len="2048", max_dec_len=str(max_dec_len))
    header, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(os.path.join(folder, "needle_rs.%d.safetensors" % max_dec_len), "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, _, array in tensors.values():
            out.write(array.tobytes())
    # A vocabulary of single characters: one letter is one token, so that lengths are known.
    with open(os.path.join(folder, "vocab.txt"), "w") as out:
        pieces = ["<pad>", "</s>", "<s>", "<unk>", "<tool_call>", "<tools>"] + ["<0x%02X>" % b for b in range(256)]
        pieces += list("abcdefghijklmnopqrstuvwxyz") + ["\u2581"]
        pieces += ["unused%d" % i for i in range(config["vocab_size"] - len(pieces))]
        for i, piece in enumerate(pieces):
            out.write("%s\t%d\n" % (piece, -i))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    if options.prepare:
        for tokens in (0, 1, 30, 64):
            prepare(options.files, tokens)
        return
    import needle_rs
    if options.threads != 1:
        print("needle-rs has one thread", file=sys.stderr)
        return
    weights = lambda tokens: os.path.join(options.files, "needle_rs.%d.safetensors" % tokens)
    vocab = os.path.join(options.files, "vocab.txt")
    needle_rs.NeedleEngine.load(weights(0), vocab)
    start = time.perf_counter()
    engines = {0: needle_rs.NeedleEngine.load(weights(0), vocab)}
    load_ms = 1e3 * (time.perf_counter() - start)
    anon = lambda: measure.anonymous_megabytes()
    values = {}

    def call(engine, tokens):  # the query, the space before it, the separator, "[]" in two bytes and a space
        written = []
        engine.run_stream("a" * (tokens - 5), "[]", lambda token, piece: written.append(token))
        return written

    call(engines[0], 64)
    for count in (64, 256, 1024):
        values["prefill_tok_s_%d" % count] = 1e3 * count / measure.timed(lambda: call(engines[0], count), options.repeats)
    for tokens in (1, 30, 64):
        engines[tokens] = needle_rs.NeedleEngine.load(weights(tokens), vocab)
        written = len(call(engines[tokens], 64))
        if written != tokens:
            raise SystemExit("needle-rs wrote %d tokens, not %d: the random weights end early" % (written, tokens))
        if tokens == 1:
            call(engines[1], 1024)
            values["anon_mb"] = anon()
    pairs = [(measure.timed(lambda: call(engines[64], 64), 1), measure.timed(lambda: call(engines[0], 64), 1))
             for _ in range(max(options.repeats, 5))]
    values["decode_tok_s"] = 64e3 / statistics.median(whole - prompt for whole, prompt in pairs)
    values["ttft_ms_256"] = measure.timed(lambda: call(engines[1], 256), options.repeats)
    values["call_ms_200_30"] = measure.timed(lambda: call(engines[30], 200), options.repeats)
    values["load_ms"] = load_ms
    values["file_mb"] = (os.path.getsize(weights(30)) + os.path.getsize(vocab)) / 1e6
    for metric, value in values.items():
        print(json.dumps({"metric": metric, "threads": 1, "value": value}))


if __name__ == "__main__":
    main()
