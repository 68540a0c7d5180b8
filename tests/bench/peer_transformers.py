#!/usr/bin/env python3
"""Measures Hugging Face Transformers on one GPU with the tests of baton_bench, to compare with it.

    peer_transformers.py [--shape 8b | --model FOLDER] [--batches 1,16,64] [--modes eager,graph]

Prints one line of JSON per result: a prompt of --prompt tokens (prefill), then steps that add a token
to each of a batch of sequences behind --context tokens (decode), of which a mode says how they run:
  eager    as they are
  graph    recorded into a CUDA graph, with a cache of fixed size
  compile  the same after torch.compile, which takes a minute for each batch size
Times are medians. Weights are random, of a shape of make_random_model.py, or those of a folder.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers

sys.dont_write_bytecode = True
import make_random_model  # pylint: disable=wrong-import-position

STEPS = 32  # Timed together.
WARM_UPS = 3


def load(options):
    how = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    if options.model:
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model, **how)
        return model.to(options.device).eval()
    config = transformers.AutoConfig.for_model(**make_random_model.config_of(options.shape))
    with torch.device(options.device):
        return transformers.AutoModelForCausalLM.from_config(config, **how).eval()


def seconds_of(device, repeats, run):
    """The median of some runs, after others."""
    def finish():
        if device == "cuda":
            torch.cuda.synchronize()
    for _ in range(WARM_UPS):
        run()
    times = []
    for _ in range(repeats):
        finish()
        began = time.perf_counter()
        run()
        finish()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def random_tokens(model, batch, count):
    return torch.randint(model.config.vocab_size, (batch, count), device=model.device)


def report(**result):
    print(json.dumps({"peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
                      **result}), flush=True)


def measure_prefill(model, options):
    tokens = random_tokens(model, 1, options.prompt)
    seconds = seconds_of(options.device, options.repeat,
                         lambda: model(tokens, use_cache=True, logits_to_keep=1))
    report(test="prefill", mode="eager", batch=1, tokens=options.prompt, milliseconds=1e3 * seconds,
           tokens_per_second=options.prompt / seconds)


class Decoding:
    """A batch of sequences behind a context; step() adds the likeliest token to each."""

    def __init__(self, model, forward, batch, context):
        self.forward = forward
        self.context = context
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=context + STEPS)
        model(random_tokens(model, batch, context), past_key_values=self.cache, use_cache=True,
              logits_to_keep=1)
        self.tokens = random_tokens(model, batch, 1)

    def go_back(self):
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    def step(self):
        logits = self.forward(self.tokens, past_key_values=self.cache, use_cache=True).logits
        self.tokens.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))

    def recorded_step(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def measure_decode(model, options, batch, mode):
    began = time.perf_counter()
    forward = model.forward
    if mode == "compile":
        torch.compiler.reset()
        forward = torch.compile(model.forward, dynamic=False)
    decoding = Decoding(model, forward, batch, options.context)
    step = decoding.step if mode == "eager" else decoding.recorded_step()
    prepared = time.perf_counter() - began

    def run():
        decoding.go_back()
        for _ in range(STEPS):
            step()
    seconds = seconds_of(options.device, options.repeat, run) / STEPS
    report(test="decode", mode=mode, batch=batch, context=options.context, milliseconds=1e3 * seconds,
           tokens_per_second=batch / seconds, prepared_in_seconds=prepared)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="8b", choices=sorted(make_random_model.SHAPES))
    parser.add_argument("--model", help="a folder; instead of random weights")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--modes", default="eager,graph")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()

    with torch.no_grad():
        model = load(options)
        measure_prefill(model, options)
        for mode in options.modes.split(","):
            for batch in (int(batch) for batch in options.batches.split(",")):
                try:
                    measure_decode(model, options, batch, mode)
                except RuntimeError as error:  # Too little memory, or what cannot be recorded.
                    report(test="decode", mode=mode, batch=batch, failed=str(error).splitlines()[0])


if __name__ == "__main__":
    main()
