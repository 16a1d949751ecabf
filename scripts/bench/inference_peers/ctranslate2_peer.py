#!/usr/bin/env python3
"""CTranslate2 int8: its nearest shape, random weights.

It knows no attention-only blocks, no norm of queries and keys and no grouped queries in an encoder-decoder: this is
its pre-norm Transformer with as many layers, the same width and heads, a feed-forward layer of 32 (the smallest that
its products take) and one key/value head a query head. Prefill is a call of one token less what a token costs.
"""

import argparse
import json
import os
import time

import numpy as np

import measure


def prepare(files):
    import ctranslate2
    from ctranslate2.specs import transformer_spec
    with open(os.path.join(files, "config.json")) as stream:
        config = json.load(stream)
    d, vocab = config["d_model"], config["vocab_size"]
    layers = (config["num_encoder_layers"], config["num_decoder_layers"])
    spec = transformer_spec.TransformerSpec.from_config(layers, config["num_heads"], pre_norm=True)
    random = np.random.default_rng(1)

    def matrix(rows, cols):
        return (random.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    def norm(layer):
        layer.gamma, layer.beta = np.ones(d, np.float32), np.zeros(d, np.float32)

    def dense(layer, rows, cols):
        layer.weight, layer.bias = matrix(rows, cols), np.zeros(rows, np.float32)

    def attention(layer, cross):
        norm(layer.layer_norm)
        for linear, rows in zip(layer.linear, (d, 2 * d, d) if cross else (3 * d, d)):
            dense(linear, rows, d)

    def feed_forward(layer):
        norm(layer.layer_norm)
        dense(layer.linear_0, 32, d)
        dense(layer.linear_1, d, 32)

    embedding = matrix(vocab, d)
    positions = np.zeros((2048, d), np.float32)
    spec.encoder.embeddings[0].weight = embedding
    spec.decoder.embeddings.weight = embedding
    for stack in (spec.encoder, spec.decoder):
        stack.position_encodings.encodings = positions
        norm(stack.layer_norm)
    for layer in spec.encoder.layer:
        attention(layer.self_attention, False)
        feed_forward(layer.ffn)
    for layer in spec.decoder.layer:
        attention(layer.self_attention, False)
        attention(layer.attention, True)
        feed_forward(layer.ffn)
    spec.decoder.projection.weight, spec.decoder.projection.bias = embedding, np.zeros(vocab, np.float32)
    spec.decoder.projection.bias[:3] = -1e4  # never the end
    words = ["<unk>", "<s>", "</s>"] + ["w%d" % i for i in range(vocab - 3)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.optimize(quantization="int8")
    folder = os.path.join(files, "ctranslate2")
    os.makedirs(folder, exist_ok=True)
    spec.save(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    if options.prepare:
        return prepare(options.files)
    import ctranslate2
    folder = os.path.join(options.files, "ctranslate2")
    load = lambda: ctranslate2.Translator(folder, device="cpu", compute_type="int8", inter_threads=1,
                                          intra_threads=options.threads)
    load()
    start = time.perf_counter()
    translator = load()
    values = {"load_ms": 1e3 * (time.perf_counter() - start)}
    random = np.random.default_rng(1)

    def call(prompt, tokens):
        words = ["w%d" % i for i in random.integers(0, 4000, prompt)]
        result = translator.translate_batch([words], beam_size=1, max_decoding_length=tokens, min_decoding_length=tokens)
        assert len(result[0].hypotheses[0]) == tokens

    call(256, 2)
    timed = lambda prompt, tokens: measure.timed(lambda: call(prompt, tokens), options.repeats)
    values["ttft_ms_256"] = timed(256, 1)
    token_ms = (timed(256, 65) - values["ttft_ms_256"]) / 64
    values["decode_tok_s"] = 1e3 / token_ms
    for count in (64, 256, 1024):
        values["prefill_tok_s_%d" % count] = 1e3 * count / max(timed(count, 1) - token_ms, 1e-3)
    values["call_ms_200_30"] = timed(200, 30)
    values["file_mb"] = sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder)) / 1e6
    call(1024, 1)
    values["anon_mb"] = measure.anonymous_megabytes()
    for metric, value in values.items():
        print(json.dumps({"metric": metric, "threads": options.threads, "value": value}))


if __name__ == "__main__":
    main()
