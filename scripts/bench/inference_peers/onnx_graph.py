"""The network as two ONNX graphs, float32, int8 (dynamic) and int4 (blocks of 32).

start: ids [T] -> cross keys [K, D, T] and values [K, T, D] of every decoder layer.
step: token [1], position [1], these, the decoder's own keys and values so far [K, P, D] -> logits
[1, V] and keys and values with one more position.
Grouped queries are stacked as rows, projections of the same input are one product, gates and score
scales are folded into weights: what a careful author would do for ONNX Runtime.
"""

import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from weights import Network


class Graph:
    def __init__(self):
        self.nodes, self.initializers, self.counter = [], {}, 0

    def constant(self, array, name=None):
        name = name or "c%d" % len(self.initializers)
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, op, *inputs, outputs=1, name=None, **attributes):
        self.counter += 1
        names = [name] if name else ["t%d_%d" % (self.counter, i) for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *values):
        return self.constant(np.array(values, np.int64), "i" + "_".join(map(str, values)))

    def norm(self, x, factors):
        return self.add("SimplifiedLayerNormalization", x, self.constant(factors), axis=-1, epsilon=1e-6)

    def reshape(self, x, *shape):
        return self.add("Reshape", x, self.ints(*shape))

    def transpose(self, x, *order):
        return self.add("Transpose", x, perm=list(order))

    def matmul(self, x, weights):
        return self.add("MatMul", x, self.constant(weights) if isinstance(weights, np.ndarray) else weights)

    def rotate(self, x, cos, sin, half):
        first, second = self.add("Split", x, self.ints(half, half), outputs=2, axis=-1)
        left = self.add("Sub", self.add("Mul", first, cos), self.add("Mul", second, sin))
        right = self.add("Add", self.add("Mul", second, cos), self.add("Mul", first, sin))
        return self.add("Concat", left, right, axis=-1)

    def model(self, inputs, outputs):
        graph = helper.make_graph(self.nodes, "needle", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def integers(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def attend(g, net, q, keys, values):
    """q [n, H, D], keys [K, D, S], values [K, S, D] -> [n, d]."""
    groups = net.heads // net.kv_heads
    q = g.transpose(g.reshape(q, -1, net.kv_heads, groups, net.head), 1, 2, 0, 3)
    scores = g.matmul(g.reshape(q, net.kv_heads, -1, net.head), keys)
    out = g.matmul(g.add("Softmax", scores, axis=-1), values)
    out = g.transpose(g.reshape(out, net.kv_heads, groups, -1, net.head), 2, 0, 1, 3)
    return g.reshape(out, -1, net.d)


def start_graph(net):
    g = Graph()
    x = g.add("Mul", g.add("Gather", g.constant(net.embedding), "ids"),
              g.constant(np.float32(np.sqrt(net.d))))
    length = g.add("Shape", "ids")
    tables = [g.add("Unsqueeze", g.add("Slice", g.constant(t), g.ints(0), length, g.ints(0)), g.ints(1))
              for t in (net.cos, net.sin)]
    for layer in net.encoder:
        qkv = g.matmul(g.norm(x, layer["norm"]), layer["qkv"])
        q, k, v = g.add("Split", qkv, g.ints(net.d, net.kv, net.kv), outputs=3, axis=-1)
        q = g.rotate(g.norm(g.reshape(q, -1, net.heads, net.head), layer["q_norm"]), *tables, net.head // 2)
        k = g.rotate(g.norm(g.reshape(k, -1, net.kv_heads, net.head), layer["k_norm"]), *tables, net.head // 2)
        v = g.transpose(g.reshape(v, -1, net.kv_heads, net.head), 1, 0, 2)
        attended = attend(g, net, q, g.transpose(k, 1, 2, 0), v)
        x = g.add("Add", x, g.matmul(attended, layer["out"]))
    states = g.norm(x, net.encoder_norm)
    joined = np.concatenate([np.concatenate([c["k"], c["v"]], axis=1) for c in net.cross], axis=1)
    parts = g.add("Split", g.matmul(states, joined), g.ints(*[net.kv] * (2 * len(net.cross))),
                  outputs=2 * len(net.cross), axis=-1)
    outputs = []
    for i, layer in enumerate(net.cross):
        k = g.norm(g.reshape(parts[2 * i], -1, net.kv_heads, net.head), layer["k_norm"])
        g.add("Transpose", k, name="ck%d" % i, perm=[1, 2, 0])
        v = g.reshape(parts[2 * i + 1], -1, net.kv_heads, net.head)
        g.add("Transpose", v, name="cv%d" % i, perm=[1, 0, 2])
        outputs += [floats("ck%d" % i, net.kv_heads, net.head, "T"), floats("cv%d" % i, net.kv_heads, "T", net.head)]
    return g.model([integers("ids", "T")], outputs)


def step_graph(net):
    g = Graph()
    x = g.add("Mul", g.add("Gather", g.constant(net.embedding), "token"),
              g.constant(np.float32(np.sqrt(net.d))))
    tables = [g.add("Unsqueeze", g.add("Gather", g.constant(t), "position"), g.ints(1))
              for t in (net.cos, net.sin)]
    inputs, outputs = [integers("token", 1), integers("position", 1)], [floats("logits", 1, net.vocab)]
    for i, (own, cross) in enumerate(zip(net.decoder, net.cross)):
        qkv = g.matmul(g.norm(x, own["norm"]), own["qkv"])
        q, k, v = g.add("Split", qkv, g.ints(net.d, net.kv, net.kv), outputs=3, axis=-1)
        q = g.rotate(g.norm(g.reshape(q, 1, net.heads, net.head), own["q_norm"]), *tables, net.head // 2)
        k = g.rotate(g.norm(g.reshape(k, 1, net.kv_heads, net.head), own["k_norm"]), *tables, net.head // 2)
        # One position: [1, K, D] and [K, 1, D] are the same bytes.
        keys = g.add("Concat", "k%d" % i, g.reshape(k, net.kv_heads, 1, net.head), name="k%d_out" % i, axis=1)
        values = g.add("Concat", "v%d" % i, g.reshape(v, net.kv_heads, 1, net.head), name="v%d_out" % i, axis=1)
        attended = attend(g, net, q, g.transpose(keys, 0, 2, 1), values)
        x = g.add("Add", x, g.matmul(attended, own["out"]))
        q = g.matmul(g.norm(x, cross["norm"]), cross["q"])
        q = g.norm(g.reshape(q, 1, net.heads, net.head), cross["q_norm"])
        x = g.add("Add", x, g.matmul(attend(g, net, q, "ck%d" % i, "cv%d" % i), cross["out"]))
        shape = (net.kv_heads, "P", net.head)
        inputs += [floats("k%d" % i, *shape), floats("v%d" % i, *shape)]
        inputs += [floats("ck%d" % i, net.kv_heads, net.head, "T"), floats("cv%d" % i, net.kv_heads, "T", net.head)]
        outputs += [floats("k%d_out" % i, net.kv_heads, "P1", net.head), floats("v%d_out" % i, net.kv_heads, "P1", net.head)]
    g.nodes.append(helper.make_node("MatMul", [g.norm(x, net.decoder_norm), g.constant(net.embedding.T)], ["logits"]))
    return g.model(inputs, outputs)


def prepare(weights_path, folder):
    """Writes {start,step}.{f32,int8,int4}.onnx."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    net = Network(weights_path)
    for name, graph in (("start", start_graph(net)), ("step", step_graph(net))):
        path = lambda kind: os.path.join(folder, "%s.%s.onnx" % (name, kind))
        onnx.save(graph, path("f32"))
        quantize_dynamic(path("f32"), path("int8"), per_channel=True, weight_type=QuantType.QInt8,
                         op_types_to_quantize=["MatMul"],
                         extra_options={"DefaultTensorType": TensorProto.FLOAT})  # the fused norm's type is unknown
        quantizer = MatMulNBitsQuantizer(onnx.load(path("f32")), block_size=32, is_symmetric=True, accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(path("int4"))
