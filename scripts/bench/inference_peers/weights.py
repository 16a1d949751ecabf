"""A .needle file's weights as float32 arrays (docs/file-format.md), by checkpoint name."""

import json
import os
import struct

import numpy as np


def read_weights(path):
    """(config of the model, {name: float32 array}). Checks nothing: the file is our own."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    count = struct.unpack_from("<I", data, 12)[0]
    arrays, config = {}, None
    for i in range(count):
        name, kind, rank, rows, cols, offset, size = struct.unpack_from("<80sIIQQQQ", data, 64 + 128 * i)
        name = name.rstrip(b"\0").decode()
        section = data[offset:offset + size]
        if kind == 0:
            config = json.loads(section.tobytes())["model"]
        elif kind == 2:
            arrays[name] = section.view(np.float32).reshape([rows, cols][:rank]).copy()
        elif kind in (3, 4):
            arrays[name] = unpack(section, kind == 4, rows, cols)
    return config, arrays


def unpack(section, int4, rows, cols):
    blocks, groups = -(-rows // 16), -(-cols // 32)
    block_bytes = 256 if int4 else 512
    codes = np.asarray(section[:blocks * groups * block_bytes])
    steps = np.asarray(section[codes.size:codes.size + blocks * groups * 16])
    units = np.asarray(section[codes.size + steps.size:]).view(np.uint16)
    if int4:  # byte 64 q + 4 r + j: columns 4 q + j and 16 + 4 q + j
        halves = np.stack([codes & 15, codes >> 4]).astype(np.int8) - 8
        codes = halves.reshape(2, blocks, groups, 4, 16, 4).transpose(1, 4, 2, 0, 3, 5)
    else:
        codes = (codes.astype(np.int16) - 128).reshape(blocks, groups, 8, 16, 4).transpose(0, 3, 1, 2, 4)
    codes = codes.reshape(blocks, 16, groups, 32).astype(np.float32)
    units = (units.astype(np.uint32) << 16).view(np.float32).reshape(blocks, 16, 1)
    scales = units * steps.reshape(blocks, groups, 16).transpose(0, 2, 1)
    return (codes * scales[..., None]).reshape(blocks * 16, groups * 32)[:rows, :cols].copy()


class Shape:
    """The sizes alone, from the config.json that --prepare wrote: a measured process holds no weights of ours."""

    def __init__(self, config):
        if not config.get("no_feedforward", True):
            raise SystemExit("the peers know the attention-only network alone")
        self.d, self.vocab = config["d_model"], config["vocab_size"]
        self.heads, self.kv_heads = config["num_heads"], config["num_kv_heads"]
        self.head = self.d // self.heads
        self.kv = self.kv_heads * self.head
        self.encoder_layers, self.decoder_layers = config["num_encoder_layers"], config["num_decoder_layers"]


def read_shape(folder):
    with open(os.path.join(folder, "config.json")) as stream:
        return Shape(json.load(stream))


class Network(Shape):
    """The weights as every peer wants them: gates and score scales folded in, projections joined."""

    def __init__(self, path):
        config, self.arrays = read_weights(path)
        super().__init__(config)
        self.embedding = self.arrays["embedding.weight"]
        self.encoder = [self.attention("encoder.layers.%d.self_attn." % i) for i in range(config["num_encoder_layers"])]
        layers = range(config["num_decoder_layers"])
        self.decoder = [self.attention("decoder.layers.%d.self_attn." % i) for i in layers]
        self.cross = [self.attention("decoder.layers.%d.cross_attn." % i) for i in layers]
        self.encoder_norm = 1 + self.arrays["encoder.final_norm.scale"]
        self.decoder_norm = 1 + self.arrays["decoder.final_norm.scale"]
        positions = np.arange(2048, dtype=np.float32)[:, None]
        exponents = np.arange(0, self.head, 2) / self.head
        angles = positions * np.power(config["rope_theta"], -exponents).astype(np.float32)[None]
        self.cos, self.sin = np.cos(angles), np.sin(angles)  # [positions, D/2]

    def attention(self, prefix):
        """q, k, v, out: [in, out]; norms: [d] or [D]."""
        get = lambda name: self.arrays[prefix + name]
        gate = 1 / (1 + np.exp(-float(get("gate").reshape(-1)[0])))
        part = {letter: get("attention.%s_proj.weight" % letter).T for letter in "qkv"}
        return {
            **part,
            "qkv": np.concatenate([part["q"], part["k"], part["v"]], axis=1),
            "out": (get("attention.out_proj.weight").T * np.float32(gate)).astype(np.float32),
            "norm": 1 + get("norm.scale"),
            "q_norm": ((1 + get("attention.q_norm.scale")) / np.float32(np.sqrt(self.head))).astype(np.float32),
            "k_norm": 1 + get("attention.k_norm.scale"),
        }
