#!/usr/bin/env python3
"""The peer of scripts/bench/training that is the reference itself: steps of Needle v1 (JAX and Flax) from a checkout of it.

usage: training_jax.py --checkout FOLDER --dump FOLDER --config NAME [--dtype f32|bf16] [--steps N] [--threads N]

The checkout must have needle/training (commit 501e68b is the last that does). Model, losses, Muon, AdamW and the compiled step are the
checkout's: that of pretraining for pre8 and tiny, that of training on packed rows for pack4 (all targets of class 0, dropout 0, no
quantised and no retrieval step, as in every other peer). Here stands only what brings our dump into its shapes: weights.safetensors and
batch.safetensors of `needle-train bench --dump`, layers stacked, kernels turned to (in, out). Packages that the checkout imports but no
step calls (data sets, tokenizer, progress bars) are empty modules where they are not installed.

One step that is not timed (it compiles), then N; prints {"peer", "config", "tokens_per_s", "ms_step", "ms_step_min", "peak_rss_mb",
"loss"} as one line; the loss is that of the first step. XLA takes every core that it may run on: --threads narrows them.
"""

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import sys
import time
import types

HEADS = {"pre8": (8, 4), "pack4": (8, 4), "tiny": (4, 2)}  # query heads, key/value heads
UNUSED = ("datasets", "gcsfs", "huggingface_hub", "scipy", "sentencepiece", "tqdm", "transformers", "wandb")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Absent(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def read_arguments():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=pathlib.Path, required=True)
    parser.add_argument("--dump", type=pathlib.Path, required=True)
    parser.add_argument("--config", choices=HEADS, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if not (options.checkout / "needle/training/pretrain.py").exists():
        parser.error(f"{options.checkout} has no needle/training/pretrain.py: give a checkout of the reference at 501e68b")
    return options


def reference_weights(ours):
    """Our parameters under the reference's names; layers stacked on the first axis, kernels [in, out]."""
    import numpy as np

    def depth(side):
        return 1 + max(int(name.split(".")[2]) for name in ours if name.startswith(f"{side}.layers."))

    def stacked(side, name, turn=False):
        return np.stack([ours[f"{side}.layers.{i}.{name}"].T if turn else ours[f"{side}.layers.{i}.{name}"] for i in range(depth(side))])

    def attention(side, part):
        kernels = {name: {"kernel": stacked(side, f"{part}.attention.{name}.weight", turn=True)} for name in PROJECTIONS}
        return kernels | {name: {"scale": stacked(side, f"{part}.attention.{name}.scale")} for name in ("q_norm", "k_norm")}

    encoder = {"attn_gate": stacked("encoder", "self_attn.gate"), "self_attn": attention("encoder", "self_attn"),
               "ZCRMSNorm_0": {"scale": stacked("encoder", "self_attn.norm.scale")}}
    decoder = {"self_attn": attention("decoder", "self_attn"), "cross_attn": attention("decoder", "cross_attn")}
    for index, part in enumerate(("self_attn", "cross_attn")):
        decoder[f"{part}_gate"] = stacked("decoder", f"{part}.gate")
        decoder[f"ZCRMSNorm_{index}"] = {"scale": stacked("decoder", f"{part}.norm.scale")}
    return {"embedding": {"embedding": ours["embedding.weight"]},
            "encoder": {"layers": {"EncoderBlock_0": encoder}, "final_norm": {"scale": ours["encoder.final_norm.scale"]}},
            "decoder": {"layers": {"DecoderBlock_0": decoder}, "ZCRMSNorm_0": {"scale": ours["decoder.final_norm.scale"]}}}


def merged(theirs, given, path=""):
    """The tree `theirs` with the leaves that `given` has, which must be of its shapes; nothing of `given` may be left over."""
    assert given.keys() <= theirs.keys(), f"{path}: the reference has no {', '.join(given.keys() - theirs.keys())}"
    result = dict(theirs)
    for name, value in given.items():
        if isinstance(value, dict):
            result[name] = merged(theirs[name], value, f"{path}/{name}")
        else:
            assert value.shape == theirs[name].shape, f"{path}/{name}: {value.shape}, the reference has {theirs[name].shape}"
            result[name] = value.astype(theirs[name].dtype)
    return result


def make_step(options, batch):
    """The reference's compiled step as state -> (state, loss), both with a leading axis of one device."""
    import jax
    import numpy as np

    def shard(array):
        return np.asarray(array, dtype=np.int32)[None]

    tokens = [shard(batch[name]) for name in ("source", "decoder_in", "target")]
    keys = jax.random.split(jax.random.PRNGKey(0), 1)
    if "source_segments" not in batch:
        step = importlib.import_module("needle.training.pretrain")._make_p_pretrain_step()
        return lambda state: step(state, *tokens, keys)
    train = importlib.import_module("needle.training.train")
    train._LOSS_WEIGHT_MAP = jax.numpy.array([1.0, 2.0, 4.0, 1.5])  # by class of token, as its train() sets it
    step = train._make_p_train_step()
    segments = [shard(batch["source_segments"]), shard(batch["decoder_segments"])]
    classes, pairs, never = np.zeros_like(tokens[2]), np.zeros((1, len(batch["source"]), 128), np.int32), np.zeros(1, bool)
    return lambda state: step(state, *tokens, *segments, keys, classes, pairs, pairs, keys, never, never)[:2]


def make_state(options, weights):
    import jax

    optim = importlib.import_module("needle.training.optim")
    architecture = importlib.import_module("needle.model.architecture")
    vocabulary, width = weights["embedding"]["embedding"].shape
    heads, kv_heads = HEADS[options.config]
    layers = [len(weights["encoder"]["layers"]["EncoderBlock_0"]["attn_gate"]),
              len(weights["decoder"]["layers"]["DecoderBlock_0"]["self_attn_gate"])]
    config = architecture.TransformerConfig(
        vocab_size=vocabulary, d_model=width, num_heads=heads, num_kv_heads=kv_heads, num_encoder_layers=layers[0],
        num_decoder_layers=layers[1], d_ff=4 * width, max_seq_len=1024, dropout_rate=0.0,
        dtype={"f32": "float32", "bf16": "bfloat16"}[options.dtype])
    state = optim.create_train_state(jax.random.PRNGKey(0), config, 3e-4, 0.02, total_steps=1000, warmup_steps=options.steps + 1)
    state = state.replace(params=merged(state.params, weights))
    return importlib.import_module("needle.utils.distributed")._replicate(state)


def main():
    options = read_arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # before XLA starts its threads
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = Absent(name)
    sys.path.insert(0, str(options.checkout))
    import jax
    from safetensors.numpy import load_file

    batch = load_file(options.dump / "batch.safetensors")
    state = make_state(options, reference_weights(load_file(options.dump / "weights.safetensors")))
    step = make_step(options, batch)
    times, losses = [], []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        state, loss = jax.block_until_ready(step(state))
        times.append(1000.0 * (time.perf_counter() - start))
        losses.append(float(loss[0]))
    step_ms = statistics.median(times[1:])
    print(json.dumps({"peer": "jax" + ("" if options.dtype == "f32" else "-bf16"), "config": options.config,
                      "tokens_per_s": 1000.0 * (batch["source"].size + batch["decoder_in"].size) / step_ms,
                      "ms_step": step_ms, "ms_step_min": min(times[1:]),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, "loss": losses[0]}))


if __name__ == "__main__":
    main()
