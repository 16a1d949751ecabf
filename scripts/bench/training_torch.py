#!/usr/bin/env python3
"""The peer of scripts/bench/training: the same training step, written as one would in plain PyTorch.

usage: training_torch.py --dump FOLDER --config NAME [--dtype f32|bf16] [--compile] [--steps N] [--threads N]

FOLDER holds weights.safetensors and batch.safetensors of `needle-train bench --dump`. One step that is not timed, then N; prints
{"peer", "config", "tokens_per_s", "ms_step", "ms_step_min", "peak_rss_mb", "loss"} as one line; the loss is that of the first step.
f32: float32 throughout. bf16: torch.autocast, Muon in float32. Nothing is fused by hand: scaled_dot_product_attention with a mask,
cross_entropy over whole logits, Muon one matrix after the other, AdamW of torch.optim.
"""

import argparse
import contextlib
import json
import math
import pathlib
import resource
import statistics
import struct
import time

import torch
import torch.nn.functional as F
from torch import nn

HEADS = {"pre8": (8, 4), "pack4": (8, 4), "tiny": (4, 2)}  # query heads, key/value heads
DTYPES = {"F32": torch.float32, "I64": torch.int64, "BF16": torch.bfloat16}
PAD = 0


def read_safetensors(path):
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            first, last = (8 + size + offset for offset in entry["data_offsets"])
            values = torch.frombuffer(data[first:last], dtype=DTYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"]).clone()
    return tensors


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        wide = x.float()
        return ((1 + self.scale) * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotate(x, rope):
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        size = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = Norm(size), Norm(size)

    def forward(self, x, context, mask, rope=None):
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        k = self.k_norm(self.k_proj(context).unflatten(-1, (self.kv_heads, -1))).transpose(1, 2)
        v = self.v_proj(context).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.norm = Norm(shape[0])
        self.attention = Attention(*shape)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x, context, mask, rope=None):
        normed = self.norm(x)
        return x + torch.sigmoid(self.gate) * self.attention(normed, normed if context is None else context, mask, rope)


class Block(nn.Module):
    def __init__(self, cross, *shape):
        super().__init__()
        self.self_attn = Gated(*shape)
        if cross:
            self.cross_attn = Gated(*shape)


class Stack(nn.Module):
    def __init__(self, count, cross, *shape):
        super().__init__()
        self.layers = nn.ModuleList(Block(cross, *shape) for _ in range(count))
        self.final_norm = Norm(shape[0])


class Needle(nn.Module):
    def __init__(self, vocabulary, encoder_layers, decoder_layers, *shape):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape[0])
        self.encoder = Stack(encoder_layers, False, *shape)
        self.decoder = Stack(decoder_layers, True, *shape)
        self.size = shape[0] // shape[1]

    def rope(self, length):
        frequencies = torch.pow(10000.0, -torch.arange(0, self.size, 2, dtype=torch.float64) / self.size).float()
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
        return angles.cos(), angles.sin()

    def forward(self, source, decoder_in, masks):
        factor = math.sqrt(self.embedding.weight.size(1))
        x = self.embedding(source) * factor
        rope = self.rope(source.size(1))
        for layer in self.encoder.layers:
            x = layer.self_attn(x, None, masks[0], rope)
        encoded = self.encoder.final_norm(x)
        y = self.embedding(decoder_in) * factor
        rope = self.rope(decoder_in.size(1))
        for layer in self.decoder.layers:
            y = layer.self_attn(y, None, masks[1], rope)
            y = layer.cross_attn(y, encoded, masks[2])
        return F.linear(self.decoder.final_norm(y), self.embedding.weight)


def make_masks(batch):
    causal = torch.ones(2 * (batch["decoder_in"].size(1),), dtype=torch.bool).tril()
    if "source_segments" in batch:
        source, decoder = batch["source_segments"], batch["decoder_segments"]
        same = lambda a, b: ((a[:, None, :, None] == b[:, None, None, :]) & (a[:, None, :, None] > 0))
        return same(source, source), same(decoder, decoder) & causal, same(decoder, source)
    source = (batch["source"] != PAD)[:, None, None, :]
    return source, (batch["decoder_in"] != PAD)[:, None, None, :] & causal, source


def token_loss(logits, target):
    logits = logits.float().flatten(0, -2)
    cross_entropy = F.cross_entropy(logits, target.flatten(), ignore_index=PAD)
    return cross_entropy + 1e-4 * torch.logsumexp(logits, -1).square().mean()


def orthogonalize(gradient):
    x = gradient.t() if gradient.size(0) > gradient.size(1) else gradient
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.t() if gradient.size(0) > gradient.size(1) else x


class Muon:
    def __init__(self, parameters):
        self.state = [(parameter, torch.zeros_like(parameter)) for parameter in parameters]

    @torch.no_grad()
    def step(self, lr):
        for parameter, momentum in self.state:
            gradient = orthogonalize(parameter.grad)
            momentum.mul_(0.95).add_(gradient)
            parameter.sub_(lr * (gradient + 0.95 * momentum + 0.01 * parameter))


def load_model(weights, config):
    vocabulary, width = weights["embedding.weight"].shape
    count = lambda side: 1 + max(int(name.split(".")[2]) for name in weights if name.startswith(side + ".layers."))
    model = Needle(vocabulary, count("encoder"), count("decoder"), width, *HEADS[config])
    unused = model.load_state_dict(weights, strict=False)
    assert not unused.missing_keys, unused.missing_keys
    assert all(name.startswith(("contrastive_head.", "log_temp")) for name in unused.unexpected_keys), unused.unexpected_keys
    return model


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=pathlib.Path, required=True)
    parser.add_argument("--config", choices=HEADS, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch = read_safetensors(options.dump / "batch.safetensors")
    model = load_model(read_safetensors(options.dump / "weights.safetensors"), options.config)
    masks = make_masks(batch)
    kernels = [p for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith("embedding")]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or name.startswith("embedding")]
    muon, adam = Muon(kernels), torch.optim.AdamW(others, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def loss_of():
        context = torch.autocast("cpu", torch.bfloat16) if options.dtype == "bf16" else contextlib.nullcontext()
        with context:
            logits = model(batch["source"], batch["decoder_in"], masks)
        return token_loss(logits, batch["target"])

    compute = torch.compile(loss_of) if options.compile else loss_of
    times, first = [], None
    for step in range(options.steps + 1):
        start = time.perf_counter()
        model.zero_grad(set_to_none=True)
        loss = compute()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = (step + 1) / (options.steps + 1)
        muon.step(0.02 * lr)
        for group in adam.param_groups:
            group["lr"] = 3e-4 * lr
        adam.step()
        first = loss.item() if first is None else first
        times.append(1000.0 * (time.perf_counter() - start))
    step_ms = statistics.median(times[1:])
    print(json.dumps({"peer": "torch-" + ("compile-" if options.compile else "") + options.dtype, "config": options.config,
                      "tokens_per_s": 1000.0 * (batch["source"].numel() + batch["decoder_in"].numel()) / step_ms,
                      "ms_step": step_ms, "ms_step_min": min(times[1:]),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, "loss": first}))


if __name__ == "__main__":
    main()
