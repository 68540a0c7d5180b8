#!/usr/bin/env python3
"""Makes tiny random models with Hugging Face transformers, runs them, and stores what came out.

Each folder beside this script holds a model in Hugging Face's layout and
  expected.json  the prompt's token ids and 64 tokens of greedy continuation
  logits.f32     the logits of every prompt position: little-endian float32 [prompt, vocab]
computed in float32 on the CPU with eager attention. common/model/golden_test.cc compares with them.

Run it with the versions in requirements.txt:  python3 make_goldens.py [NAME ...]
Half of the configurations are written with the names that transformers used before version 5.
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_TOKENS = 24
GREEDY_TOKENS = 64
# The likeliest token must lead by so much that no rounding can change it.
MARGIN_MIN = 1e-3
# As must, in probability, the last expert that is chosen.
ROUTING_MARGIN_MIN = 1e-4

COMMON = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
    attn_implementation="eager",
)
GPT2 = dict(
    vocab_size=128,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=128,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
GEMMA2 = dict(num_hidden_layers=4, head_dim=16, query_pre_attn_scalar=20)
GEMMA3 = dict(head_dim=16, query_pre_attn_scalar=24)
LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                short_factor=[1.0, 1.0, 1.1, 1.2, 1.3, 1.5], long_factor=[1.0, 1.2, 2.0, 3.5, 5.0, 8.0])
YARN_MSCALE = dict(YARN, beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.5)

# name: (family, seed, stored type, shards, old spelling, options)
MODELS = {
    "llama": ("Llama", 1, torch.float32, 1, True, {}),
    "llama_tied": ("Llama", 2, torch.float32, 1, False,
                   dict(tie_word_embeddings=True, num_hidden_layers=3, num_key_value_heads=1)),
    "llama_llama3": ("Llama", 3, torch.float32, 1, True, dict(head_dim=16, rope_parameters=LLAMA3)),
    "llama_linear": ("Llama", 4, torch.float32, 1, True,
                     dict(tie_word_embeddings=True,
                          rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.5))),
    "llama_bf16": ("Llama", 5, torch.bfloat16, 1, False, dict(hidden_size=48)),
    "llama_f16": ("Llama", 6, torch.float16, 1, True, {}),
    "llama_sharded": ("Llama", 7, torch.bfloat16, 3, False, {}),
    "mistral": ("Mistral", 8, torch.float32, 1, False,
                dict(head_dim=10, sliding_window=None, tie_word_embeddings=True)),
    "mistral_window": ("Mistral", 13, torch.float32, 1, False, dict(sliding_window=10)),
    "phi3": ("Phi3", 16, torch.float32, 1, False, dict(num_key_value_heads=4, sliding_window=12)),
    # Longer than the original context from the first token that is compared: long factors.
    "phi3_long": ("Phi3", 17, torch.bfloat16, 1, True,
                  dict(hidden_size=64, original_max_position_embeddings=16,
                       rope_parameters=LONGROPE)),
    "phi3_short": ("Phi3", 18, torch.float32, 1, False,
                   dict(hidden_size=64, original_max_position_embeddings=128,
                        rope_parameters=LONGROPE)),
    "gemma": ("Gemma", 18, torch.float32, 1, False,
              dict(head_dim=16, tie_word_embeddings=True, num_key_value_heads=1)),
    # Caps that are low enough to be felt.
    "gemma2": ("Gemma2", 19, torch.float32, 1, False,
               dict(GEMMA2, sliding_window=9, attn_logit_softcapping=2.0,
                    final_logit_softcapping=5.0)),
    "gemma2_bf16": ("Gemma2", 20, torch.bfloat16, 1, True,
                    dict(GEMMA2, hidden_size=64, sliding_window=20)),
    "gemma3": ("Gemma3", 21, torch.float32, 1, False,
               dict(GEMMA3, num_hidden_layers=7, sliding_window=7)),
    "gemma3_linear": ("Gemma3", 22, torch.float32, 1, True,
                      dict(GEMMA3, num_hidden_layers=4, sliding_window=18, sliding_window_pattern=2,
                           final_logit_softcapping=4.0,
                           rope_parameters=dict(
                               full_attention=dict(rope_type="linear", rope_theta=50000.0,
                                                   factor=4.0),
                               sliding_attention=dict(rope_type="default", rope_theta=5000.0)))),
    "qwen2": ("Qwen2", 9, torch.float32, 1, False, dict(num_attention_heads=2)),
    "qwen2_yarn": ("Qwen2", 10, torch.bfloat16, 1, True,
                   dict(head_dim=16, num_attention_heads=2, rope_parameters=YARN)),
    "qwen2_window": ("Qwen2", 14, torch.float32, 1, True,
                     dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=5,
                          max_window_layers=1)),
    "qwen3": ("Qwen3", 11, torch.float32, 1, True, dict(head_dim=16)),
    "qwen3_window": ("Qwen3", 15, torch.float32, 1, False,
                     dict(head_dim=16, use_sliding_window=True, sliding_window=20,
                          layer_types=["sliding_attention", "full_attention"])),
    "qwen3_yarn": ("Qwen3", 12, torch.float32, 1, False,
                   dict(head_dim=16, tie_word_embeddings=True, rope_parameters=YARN_MSCALE)),
    "gpt2": ("GPT2", 60, torch.float32, 1, False, {}),
    "gpt2_bare": ("GPT2", 61, torch.float16, 1, True,
                  dict(n_embd=40, n_inner=48, n_layer=3, n_head=2, layer_norm_epsilon=1e-3)),
    "gpt2_untied": ("GPT2", 62, torch.bfloat16, 3, False, dict(tie_word_embeddings=False)),
    "mixtral": ("Mixtral", 13, torch.float32, 1, True,
                dict(intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)),
    "mixtral_bf16": ("Mixtral", 114, torch.bfloat16, 3, False,
                     dict(intermediate_size=24, head_dim=16, num_local_experts=5,
                          num_experts_per_tok=3, sliding_window=7)),
    "qwen2_moe": ("Qwen2Moe", 15, torch.float32, 1, True,
                  dict(moe_intermediate_size=20, shared_expert_intermediate_size=36, num_experts=5,
                       num_experts_per_tok=2, use_sliding_window=True, sliding_window=6,
                       max_window_layers=2)),
    "qwen3_moe": ("Qwen3Moe", 56, torch.float32, 1, True,
                  dict(head_dim=16, moe_intermediate_size=20, num_experts=8, num_experts_per_tok=3,
                       norm_topk_prob=True)),
    "qwen3_moe_mixed": ("Qwen3Moe", 17, torch.bfloat16, 1, False,
                        dict(moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2,
                             num_hidden_layers=5, decoder_sparse_step=2, mlp_only_layers=[1],
                             use_sliding_window=True, sliding_window=9,
                             tie_word_embeddings=True)),
}


def randomize(model, family, generator):
    """Weights large enough that attention and logits are far from flat."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if family == "GPT2" and name.endswith("bias"):
                tensor.copy_(0.1 * noise)  # Larger ones would decide alone.
            elif name.endswith("norm.weight") or "layernorm" in name or ".ln_" in name:
                tensor.copy_((0.0 if family.startswith("Gemma") else 1.0) + 0.2 * noise)
            elif "embed_tokens" in name or ".wte." in name or ".wpe." in name:
                tensor.copy_((0.15 if family.startswith("Gemma") else 0.7) * noise)
            else:
                tensor.copy_(0.35 * noise)


def use_old_spelling(path):
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "gpt2":
        path.write_text(json.dumps(config, indent=2) + "\n")
        return
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config.pop("layer_types", None)
    if config["model_type"].startswith("qwen") and "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2) + "\n")


def strip_prefix(path):
    """As the first files of GPT-2 name their tensors, which had the masks in them, too."""
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    tensors["h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 4, 4))
    save_file(tensors, path, metadata={"format": "pt"})


def watch_routing(model):
    """Keeps, of each token and layer, by how much the last chosen expert beat the next one."""
    margins = [float("inf")]

    def look(router, _, outputs):
        ordered = outputs[0].softmax(-1).sort(-1, descending=True).values
        margins.append((ordered[:, router.top_k - 1] - ordered[:, router.top_k]).min().item())

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(look)
    return margins


def make(name, family, seed, dtype, shards, old_spelling, options):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    config_name = family + ("TextConfig" if family == "Gemma3" else "Config")
    config = getattr(transformers, config_name)(
        **{**(GPT2 if family == "GPT2" else COMMON), **options})
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    model_class = getattr(transformers, family + head)
    model = model_class(config)
    randomize(model, family, generator)
    model = model.to(dtype)
    size = sum(t.numel() * t.element_size() for t in model.parameters())
    model.save_pretrained(folder, max_shard_size=size if shards == 1 else size // (shards - 1))
    if old_spelling:
        use_old_spelling(folder / "config.json")
        if family == "GPT2":
            strip_prefix(folder / "model.safetensors")

    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    routing_margins = watch_routing(model)
    tokens = torch.randint(0, config.vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
    prompt = list(tokens)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
        assert logits.dtype == torch.float32
        margin = float("inf")
        for _ in range(GREEDY_TOKENS):
            top = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            margin = min(margin, (top.values[0] - top.values[1]).item())
            tokens.append(top.indices[0].item())
    assert margin > MARGIN_MIN, f"{name}: the margin is only {margin}; choose another seed"
    assert min(routing_margins) > ROUTING_MARGIN_MIN, f"{name}: experts lead by too little"
    (folder / "logits.f32").write_bytes(logits.numpy().astype("<f4").tobytes())
    expected = {"prompt": prompt, "greedy": tokens[PROMPT_TOKENS:]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    total = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:15} {total:7} bytes, margin {margin:.4f}, deviation of logits {logits.std():.2f}, "
          f"{len(set(tokens[PROMPT_TOKENS:]))} different tokens")


def main():
    torch.use_deterministic_algorithms(True)
    for name in sys.argv[1:] or MODELS:
        make(name, *MODELS[name])


if __name__ == "__main__":
    main()
