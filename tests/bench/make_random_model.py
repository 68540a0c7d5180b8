#!/usr/bin/env python3
"""Writes a model folder of random weights in the shape of a real one.

    make_random_model.py SHAPE FOLDER [--seed N]

SHAPE is 8b (Llama 3.1 8B), 1b (Llama 3.2 1B), 2b (as Gemma 2 2B) or tiny. The folder has config.json and sharded
safetensors of bfloat16, and no tokenizer. Both Baton and Transformers load it. Numbers are normal,
of deviation 0.02; the norms' are 1. They come from PyTorch, on the GPU if it sees one, and shards are
written side by side; without PyTorch, small shapes come from Python alone.
"""

import argparse
import array
import concurrent.futures
import json
import pathlib
import random
import struct
import time

try:
    import torch
except ImportError:
    torch = None

DEVIATION = 0.02
SHARD_BYTES = 1 << 30
CHUNK_NUMBERS = 32 << 20
WRITERS_MAX = 16
BF16_ONE = 0x3F80

# Hidden size, intermediate size, layers, heads, KV heads, head size, vocabulary, tied embeddings.
SHAPES = {
    "8b": (4096, 14336, 32, 32, 8, 128, 128256, False),
    # The widths of Gemma 2 2B, whose heads are long.
    "2b": (2304, 9216, 26, 8, 4, 256, 256000, True),
    "1b": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "tiny": (256, 512, 2, 8, 2, 32, 1024, False),
}


def config_of(shape):
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, tied = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocab - 2,
        "dtype": "bfloat16",
        "eos_token_id": vocab - 1,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": DEVIATION,
        "intermediate_size": intermediate,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "factor": 32.0 if shape == "1b" else 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": vocab,
    }


def tensors_of(config):
    """[(name, shape)] in the order in which they are stored."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    tensors = [("model.embed_tokens.weight", (config["vocab_size"], hidden))]
    for layer in range(config["num_hidden_layers"]):
        tensors += [(f"model.layers.{layer}.{name}.weight", shape) for name, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (q, hidden)),
            ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)),
            ("self_attn.o_proj", (hidden, q)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (intermediate, hidden)),
            ("mlp.up_proj", (intermediate, hidden)),
            ("mlp.down_proj", (hidden, intermediate)))]
    tensors.append(("model.norm.weight", (hidden,)))
    if not config["tie_word_embeddings"]:
        tensors.append(("lm_head.weight", (config["vocab_size"], hidden)))
    return tensors


def numbers_in(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def shards_of(tensors):
    """The tensors in groups of at most SHARD_BYTES, or of one tensor that is larger."""
    shards, size = [[]], 0
    for name, shape in tensors:
        tensor_bytes = 2 * numbers_in(shape)
        if shards[-1] and size + tensor_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += tensor_bytes
    return shards


def header_of(tensors):
    """The beginning of a safetensors file: the length of a table, and the table."""
    table, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = offset + 2 * numbers_in(shape)
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TorchNumbers:
    """Normal numbers of bfloat16 as bytes, a chunk at a time: of one thread."""

    def __init__(self, seed):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.numbers = torch.empty(CHUNK_NUMBERS, dtype=torch.bfloat16, device=self.device)
        self.host = self.numbers
        if self.stream is not None:
            self.host = torch.empty(CHUNK_NUMBERS, dtype=torch.bfloat16, pin_memory=True)

    def write(self, file, count):
        while count > 0:
            part = min(count, CHUNK_NUMBERS)
            if self.stream is None:
                self.numbers[:part].normal_(0, DEVIATION, generator=self.generator)
            else:
                with torch.cuda.stream(self.stream):
                    self.numbers[:part].normal_(0, DEVIATION, generator=self.generator)
                    self.host[:part].copy_(self.numbers[:part], non_blocking=True)
                self.stream.synchronize()
            file.write(self.host[:part].view(torch.int16).numpy())
            count -= part


class PythonNumbers:
    """The same, slowly, where there is no PyTorch."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def write(self, file, count):
        floats = array.array("f", (self.random.gauss(0, DEVIATION) for _ in range(count)))
        # The upper half of a float32 is it in bfloat16, rounded towards zero.
        file.write(array.array("H", floats.tobytes())[1::2])


def write_shard(path, tensors, seed):
    numbers = (PythonNumbers if torch is None else TorchNumbers)(seed)
    with open(path, "wb") as file:
        file.write(header_of(tensors))
        for name, shape in tensors:
            if len(shape) == 1:
                file.write(array.array("H", [BF16_ONE]) * numbers_in(shape))
            else:
                numbers.write(file, numbers_in(shape))


def write_model(shape, folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape)
    shards = shards_of(tensors_of(config))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    with concurrent.futures.ThreadPoolExecutor(min(len(shards), WRITERS_MAX)) as pool:
        writes = [pool.submit(write_shard, folder / name, tensors, seed * 1000 + i)
                  for i, (name, tensors) in enumerate(zip(names, shards))]
        for write in writes:
            write.result()
    files = {tensor: name for name, tensors in zip(names, shards) for tensor, _ in tensors}
    size = sum(2 * numbers_in(dimensions) for tensors in shards for _, dimensions in tensors)
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if torch is None and options.shape != "tiny":
        parser.error("only tiny comes without PyTorch")

    began = time.monotonic()
    size = write_model(options.shape, options.folder, options.seed)
    print(f"{options.folder}: {size / 1e9:.3f} GB in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
