#!/usr/bin/env python3
"""PyTorch eager with a key/value cache. --variant f32 or int8 (dynamic quantisation of the linear layers)."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import measure
from weights import Network


def linear(weights):
    layer = nn.Linear(*weights.shape, bias=False)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(weights.T))
    return layer


def tensor(array):
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)), requires_grad=False)


class Attention(nn.Module):
    def __init__(self, net, weights, cross):
        super().__init__()
        self.heads, self.kv_heads, self.head, self.d, self.kv = net.heads, net.kv_heads, net.head, net.d, net.kv
        if cross:
            self.q = linear(weights["q"])
        else:
            self.qkv = linear(weights["qkv"])
        self.out = linear(weights["out"])
        self.norm, self.q_norm, self.k_norm = (tensor(weights[n]) for n in ("norm", "q_norm", "k_norm"))

    def normed(self, x):
        return F.rms_norm(x, (self.d,), self.norm, 1e-6)

    def queries(self, q):  # [n, d] -> [H, n, D]
        return F.rms_norm(q.view(-1, self.heads, self.head), (self.head,), self.q_norm, 1e-6).transpose(0, 1)

    def attend(self, q, k, v):  # the score scale is in q_norm
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0, enable_gqa=True)
        return self.out(out[0].transpose(0, 1).reshape(-1, self.d))

    def project(self, x, cos, sin):
        q, k, v = self.qkv(self.normed(x)).split([self.d, self.kv, self.kv], dim=-1)
        k = F.rms_norm(k.view(-1, self.kv_heads, self.head), (self.head,), self.k_norm, 1e-6).transpose(0, 1)
        v = v.view(-1, self.kv_heads, self.head).transpose(0, 1)
        return rotate(self.queries(q), cos, sin), rotate(k, cos, sin), v


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Model(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.d, self.kv_heads, self.head = net.d, net.kv_heads, net.head
        self.embedding = tensor(net.embedding)
        self.encoder = nn.ModuleList(Attention(net, w, False) for w in net.encoder)
        self.decoder = nn.ModuleList(Attention(net, w, False) for w in net.decoder)
        self.cross = nn.ModuleList(Attention(net, w, True) for w in net.cross)
        self.cross_kv = linear(np.concatenate([np.concatenate([c["k"], c["v"]], axis=1) for c in net.cross], axis=1))
        self.encoder_norm, self.decoder_norm = tensor(net.encoder_norm), tensor(net.decoder_norm)
        self.cos, self.sin = tensor(net.cos), tensor(net.sin)
        self.logits = linear(net.embedding.T)

    def start(self, ids, max_tokens):
        x = self.embedding[ids] * self.d ** 0.5
        cos, sin = self.cos[:len(ids)], self.sin[:len(ids)]
        for layer in self.encoder:
            x = x + layer.attend(*layer.project(x, cos, sin))
        states = F.rms_norm(x, (self.d,), self.encoder_norm, 1e-6)
        parts = self.cross_kv(states).view(len(ids), len(self.cross), 2, self.kv_heads, self.head)
        parts = parts.permute(1, 2, 3, 0, 4)  # [layers, 2, K, T, D]
        keys = [F.rms_norm(parts[i, 0], (self.head,), c.k_norm, 1e-6).contiguous() for i, c in enumerate(self.cross)]
        values = [parts[i, 1].contiguous() for i in range(len(self.cross))]
        room = torch.empty(len(self.decoder), 2, self.kv_heads, max_tokens, self.head)
        return {"cross": list(zip(keys, values)), "own": room, "position": 0}

    def step(self, session, token):
        at = session["position"]
        x = self.embedding[token:token + 1] * self.d ** 0.5
        cos, sin = self.cos[at:at + 1], self.sin[at:at + 1]
        for i, (own, cross) in enumerate(zip(self.decoder, self.cross)):
            q, k, v = own.project(x, cos, sin)
            room = session["own"][i]
            room[0, :, at:at + 1], room[1, :, at:at + 1] = k, v
            x = x + own.attend(q, room[0, :, :at + 1], room[1, :, :at + 1])
            x = x + cross.attend(cross.queries(cross.q(cross.normed(x))), *session["cross"][i])
        session["position"] = at + 1
        return self.logits(F.rms_norm(x, (self.d,), self.decoder_norm, 1e-6))


class TorchPeer:
    def __init__(self, options):
        self.path, self.variant = os.path.join(options.files, "model.needle"), options.variant
        self.model = None

    def load(self, threads):
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        model = Model(Network(self.path)).eval()
        if self.variant == "int8":
            import torch.ao.quantization as quantization
            model = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        self.model = model
        return None

    def start(self, tokens, max_tokens):
        return self.model.start(torch.tensor(tokens), max_tokens)

    def step(self, session, token):
        return self.model.step(session, token)[0].numpy()


if __name__ == "__main__":
    measure.main("PyTorch", TorchPeer)
