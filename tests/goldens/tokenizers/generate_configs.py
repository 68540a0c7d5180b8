#!/usr/bin/env python3
"""Writes what transformers puts around a text, by tokenizer_config.json.

    pip install transformers==4.57.6
    python3 tests/goldens/tokenizers/generate_configs.py

Writes, beside itself, config_vectors.json: for a base that generate.py made and a tokenizer_config.json
the ids of a text with special tokens, or null where transformers refuses the pair. Version 4, because
published checkpoints were made with it: version 5 no longer reads add_bos_token and add_eos_token, and
so gives some of them other prompts.
"""

import json
import pathlib
import shutil
import tempfile

import transformers

FOLDER = pathlib.Path(__file__).resolve().parent
TEXT = "Hello world"
NAMES = {"llama2": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
         "qwen": ("<|endoftext|>", "<|im_end|>"), "gpt2": ("<|endoftext|>", "<|endoftext|>")}

# The class, the base, and what the configuration says beside the names of the base's tokens.
CASES = [
    ("LlamaTokenizerFast", "qwen", {"add_bos_token": True, "add_eos_token": False}),  # DeepSeek-R1-Distill-Qwen.
    ("LlamaTokenizerFast", "qwen", {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>"}}),
    ("LlamaTokenizerFast", "qwen", {"add_bos_token": None}),
    ("LlamaTokenizerFast", "qwen", {"add_bos_token": False, "add_eos_token": True}),
    ("LlamaTokenizerFast", "llama3", {"add_bos_token": False}),
    ("LlamaTokenizer", "llama2", {}),
    ("LlamaTokenizer", "llama2", {"add_bos_token": False}),  # Phi-3.
    ("LlamaTokenizer", "llama2", {"add_bos_token": True, "add_eos_token": True}),
    ("LlamaTokenizer", "llama2", {"bos_token": None}),
    ("LlamaTokenizer", "llama2", {"bos_token": None, "add_bos_token": False}),
    ("LlamaTokenizer", "llama2", {"eos_token": None, "add_eos_token": True}),
    ("CodeLlamaTokenizer", "llama2", {"add_bos_token": False}),
    ("CodeLlamaTokenizerFast", "llama2", {"add_eos_token": True}),
    ("GemmaTokenizer", "llama2", {}),
    ("GemmaTokenizerFast", "llama2", {"add_bos_token": False, "add_eos_token": True}),
    ("CohereTokenizer", "qwen", {}),
    ("CohereTokenizerFast", "qwen", {"add_bos_token": False}),
    ("GPTNeoXTokenizer", "llama3", {}),
    ("GPTNeoXTokenizerFast", "gpt2", {"add_bos_token": True}),
    # These classes leave tokenizer.json's post-processor alone.
    ("PreTrainedTokenizerFast", "llama3", {"add_bos_token": False}),
    ("PreTrainedTokenizerFast", "qwen", {"add_bos_token": True, "add_eos_token": True}),
    ("Qwen2Tokenizer", "qwen", {"add_bos_token": True}),
    ("GPT2TokenizerFast", "gpt2", {"add_bos_token": True}),
]


def encode(base, config):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copy(FOLDER / f"{base}.json", folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except ValueError as error:
            assert "_token = None" in str(error), error
            return None
        assert type(tokenizer).__name__.removesuffix("Fast") == config["tokenizer_class"].removesuffix("Fast")
        return tokenizer(TEXT).input_ids


def main():
    assert transformers.__version__.startswith("4."), transformers.__version__
    lines = []
    for name, base, fields in CASES:
        bos, eos = NAMES[base]
        config = {"tokenizer_class": name, "bos_token": bos, "eos_token": eos, **fields}
        lines.append(json.dumps({"base": base, "config": config, "ids": encode(base, config)}))
    # Names that the configuration leaves out are those of the class.
    config = {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}
    lines.append(json.dumps({"base": "llama2", "config": config, "ids": encode("llama2", config)}))
    (FOLDER / "config_vectors.json").write_text(
        json.dumps({"text": TEXT})[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
