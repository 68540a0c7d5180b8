"""A minimal Llama in PyTorch, with the tensor names and layout of Hugging Face's LlamaForCausalLM.

Module names are chosen so that `state_dict()` with the prefix "model." is already what
model.safetensors holds: no renaming table to keep in step.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def rope_table(config, positions):
    """Cosines and sines of shape [batch, 1, length, head_dim], for positions [batch, length]."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, rope):
    """Rotates the pairs (x[i], x[i + head_dim / 2]): the half layout of Llama on Hugging Face."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_dim = config.head_dim
        self.queries_per_kv = config.num_attention_heads // config.num_key_value_heads
        query_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def split_heads(self, x):
        batch, length, _ = x.shape
        return x.view(batch, length, -1, self.head_dim).transpose(1, 2)

    def forward(self, x, rope, cache):
        query = rotate(self.split_heads(self.q_proj(x)), rope)
        key = rotate(self.split_heads(self.k_proj(x)), rope)
        value = self.split_heads(self.v_proj(x))
        if cache is not None:
            key, value = cache.append(self, key, value)
        # A single query may see everything; several at once start from an empty cache.
        causal = query.shape[2] > 1
        key = key.repeat_interleave(self.queries_per_kv, dim=1)
        value = value.repeat_interleave(self.queries_per_kv, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x, rope, cache):
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class KvCache:
    """Keys and values of the tokens seen so far, per attention layer."""

    def __init__(self):
        self.length = 0
        self.tensors = {}

    def append(self, layer, key, value):
        if layer in self.tensors:
            old_key, old_value = self.tensors[layer]
            key = torch.cat((old_key, key), dim=2)
            value = torch.cat((old_value, value), dim=2)
        self.tensors[layer] = (key, value)
        return key, value


class Llama(nn.Module):
    """Input embedding and output projection share one matrix (tie_word_embeddings)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        init_weights(self)

    def hidden(self, tokens, positions, cache=None):
        rope = rope_table(self.config, positions)
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x, rope, cache)
        return self.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, prompt_tokens, max_new_tokens, stop_tokens):
        """Greedy continuation of one prompt, without the stop token that ended it."""
        cache = KvCache()
        generated = []
        step = list(prompt_tokens)
        while len(generated) < max_new_tokens:
            positions = torch.arange(cache.length, cache.length + len(step))[None]
            hidden = self.hidden(torch.tensor([step]), positions, cache)
            cache.length += len(step)
            token = int(self.logits(hidden[0, -1]).argmax())
            if token in stop_tokens:
                break
            generated.append(token)
            step = [token]
        return generated


# --- First weights -------------------------------------------------------------------------------
#
# Looking up needs heads that build on each other: in one layer, heads that tell a token which words
# stand one, two and three places before it; in the next, heads that find an earlier token with the
# right words before it, and copy it. From random weights neither is useful without the other, and a
# model waits long for both. So the first two layers start near such heads, and all layers with
# queries that match keys and outputs that copy what was found. Training may change all of it.


WORD_STD = 0.05  # of an embedding's coordinates, and so of what heads should add at first
POSITION_COORDINATE = 0  # the same for all tokens: a query made of it looks at positions only
POSITION_VALUE = 0.2
LOOK_BACK_SCALE = 1.6  # makes the attention of init_looking_back() nearly all on one token
LOOK_UP_SCALE = 1.5
BEFORE_SCALE = 0.12  # makes what a looking-back head adds about as large as a word
COPY_SCALE = 0.1


def init_weights(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.init.normal_(model.embed_tokens.weight, std=WORD_STD)
    model.embed_tokens.weight.data[:, POSITION_COORDINATE] = POSITION_VALUE
    for block in model.layers:
        # Branches start small: the stream carries the words themselves, for a head to find there.
        nn.init.zeros_(block.mlp.down_proj.weight)
        init_matching_and_copying(block.self_attn)
    first, second = model.layers[0].self_attn, model.layers[1].self_attn
    init_looking_back(first, model.config)
    init_looking_up(first, second, model.config)


def heads_of(weight, head_dim):
    """A view of a projection into heads as [heads, head_dim, hidden]."""
    return weight.data.view(-1, head_dim, weight.shape[1])


def init_matching_and_copying(attention):
    """Queries like their keys, so that like finds like; outputs that undo the value projection."""
    queries = heads_of(attention.q_proj.weight, attention.head_dim)
    keys = heads_of(attention.k_proj.weight, attention.head_dim)
    values = heads_of(attention.v_proj.weight, attention.head_dim)
    attention.o_proj.weight.data.zero_()
    outputs = heads_of(attention.o_proj.weight.T, attention.head_dim)
    for head in range(len(queries)):
        kv_head = head // attention.queries_per_kv
        queries[head] = 0.5 * queries[head] + keys[kv_head]
        outputs[head] = COPY_SCALE / attention.queries_per_kv * values[kv_head]


def init_looking_back(attention, config):
    """The first KV head's queries start with all attention on the token 1, 2, ... before."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    queries = heads_of(attention.q_proj.weight, config.head_dim)
    keys = heads_of(attention.k_proj.weight, config.head_dim)
    outputs = heads_of(attention.o_proj.weight.T, config.head_dim)
    keys[0] = 0.0
    keys[0, :half, POSITION_COORDINATE] = LOOK_BACK_SCALE
    # What stands at each of the places before goes to directions of its own in the stream.
    directions = torch.empty(config.hidden_size, attention.queries_per_kv * config.head_dim)
    nn.init.orthogonal_(directions)
    for head, direction in enumerate(directions.T.split(config.head_dim)):
        angles = -(head + 1) * frequencies
        queries[head] = 0.0
        pattern = torch.cat((angles.cos(), angles.sin()))
        queries[head, :, POSITION_COORDINATE] = LOOK_BACK_SCALE * pattern
        outputs[head] = BEFORE_SCALE * direction


def init_looking_up(first, second, config):
    """Queries that ask "which token has my word just before it?", and, for the second KV head,
    "which token has, three places before it, the word two places before me?": from "Mira has a"
    that finds the silver of "Mira has a silver"."""
    before = heads_of(first.o_proj.weight.T, config.head_dim) / BEFORE_SCALE
    words_as_seen = heads_of(first.v_proj.weight, config.head_dim)[0]
    queries = heads_of(second.q_proj.weight, config.head_dim)
    keys = heads_of(second.k_proj.weight, config.head_dim)
    keys[0], keys[1] = LOOK_UP_SCALE * before[0], LOOK_UP_SCALE * before[2]
    for head in range(len(queries)):
        asked = words_as_seen if head < second.queries_per_kv else before[1]
        queries[head] = 0.2 * queries[head] + LOOK_UP_SCALE * asked
