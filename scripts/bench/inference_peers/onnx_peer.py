#!/usr/bin/env python3
"""ONNX Runtime: the graphs of onnx_graph.py. --variant f32, int8 or int4."""

import os
import sys

import numpy as np

import measure
from weights import read_shape


class OnnxPeer:
    def __init__(self, options):
        self.folder, self.variant = options.files, options.variant
        shape = read_shape(options.files)
        self.empty = np.zeros((shape.kv_heads, 0, shape.head), np.float32)
        self.own = [letter + str(i) for i in range(shape.decoder_layers) for letter in ("k", "v")]
        self.cross = [letter + str(i) for i in range(shape.decoder_layers) for letter in ("ck", "cv")]

    def load(self, threads):
        import onnxruntime as ort
        self.ort = ort
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = 3
        paths = [os.path.join(self.folder, "%s.%s.onnx" % (name, self.variant)) for name in ("start", "step")]
        self.start_session, self.step_session = [
            ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"]) for path in paths]
        return sum(map(os.path.getsize, paths))

    def value(self, *ints):
        return self.ort.OrtValue.ortvalue_from_numpy(np.array(ints, np.int64))

    def start(self, tokens, max_tokens):
        cross = self.start_session.run_with_ort_values(self.cross, {"ids": self.value(*tokens)})
        state = dict(zip(self.cross, cross))
        empty = self.ort.OrtValue.ortvalue_from_numpy(self.empty)
        state.update({name: empty for name in self.own})
        return {"state": state, "position": 0}

    def step(self, session, token):
        state = session["state"]
        feeds = dict(state, token=self.value(token), position=self.value(session["position"]))
        outputs = self.step_session.run_with_ort_values(["logits"] + [n + "_out" for n in self.own], feeds)
        state.update(zip(self.own, outputs[1:]))
        session["position"] += 1
        return outputs[0].numpy()


if __name__ == "__main__":
    if "--prepare" in sys.argv:
        import onnx_graph
        folder = sys.argv[sys.argv.index("--files") + 1]
        onnx_graph.prepare(os.path.join(folder, "model.needle"), folder)
    else:
        measure.main("ONNX Runtime", OnnxPeer)
