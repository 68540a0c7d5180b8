#!/usr/bin/env python3
"""The recall test of the demo model: can it answer from a list that it read long before?

    python3 recall.py make             writes recall.jsonl: 200 prompts that training never saw
    python3 recall.py score            greedy answers of the stored weights, by distance
    python3 recall.py say "Once upon"  continues a prompt
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random

import safetensors.torch
import tokenizers
import torch

import corpus
from model import Llama, LlamaConfig

HERE = pathlib.Path(__file__).parent
PROMPTS = 200
SEED = 20240229  # training's seeds are small numbers
DISTANCES = (50, 1000)  # wanted; whole sentences of filler come somewhat below
BUCKETS = (0, 200, 400, 600, 800, 1001)
# An answer has about ten tokens.
MAX_NEW_TOKENS = 24


def load(folder):
    """The model with the weights as they are stored, computing in float32, and its tokenizer."""
    stored = json.loads((folder / "config.json").read_text())
    names = [field.name for field in dataclasses.fields(LlamaConfig)]
    model = Llama(LlamaConfig(**{name: stored[name] for name in names}))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    model.load_state_dict(
        {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    return model.eval(), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def make_prompt(rng, distance, chat, tokenizer):
    """A prompt whose asked entry begins about `distance` tokens before the end, and its answer."""
    def count_tokens(text):
        return len(tokenizer.encode(text).ids)

    entries = corpus.recall_entries(rng, rng.randint(4, 12), want_held_out=True)
    asked = rng.choice(entries)

    def distance_with(between):
        prompt = corpus.recall_prompt(entries, between, asked, chat)
        entry = f"- {asked[0]} has"
        return count_tokens(prompt[prompt.index(entry):]), prompt

    nearest, _ = distance_with("")
    between = corpus.filler(rng, max(0, distance - nearest), count_tokens)
    tokens, prompt = distance_with(between)
    answer = corpus.recall_answer(asked, chat)
    return {"prompt": prompt, "answer": answer, "distance_tokens": tokens}


def make(path, tokenizer):
    """Distances are spread evenly; plain and ChatML prompts take turns."""
    rng = random.Random(SEED)
    least, most = DISTANCES
    lines = []
    for index in range(PROMPTS):
        wanted = least + (most - least) * index // (PROMPTS - 1)
        lines.append(json.dumps(make_prompt(rng, wanted, index % 2 == 1, tokenizer)))
    path.write_text("\n".join(lines) + "\n")


def is_right(text, answer):
    return text.strip().startswith(answer)


def end_tokens(tokenizer):
    return {tokenizer.token_to_id(name) for name in (corpus.END_OF_TEXT, corpus.IM_END)}


def continue_text(model, tokenizer, prompt, max_new_tokens):
    tokens = model.generate(tokenizer.encode(prompt).ids, max_new_tokens, end_tokens(tokenizer))
    return tokenizer.decode(tokens)


def bucket_of(distance):
    upper = next(bound for bound in BUCKETS[1:] if distance < bound)
    return BUCKETS[BUCKETS.index(upper) - 1], upper - 1


def score(path, model, tokenizer, show_wrong):
    counts = collections.defaultdict(lambda: [0, 0])  # bucket -> right, all
    for line in path.read_text().splitlines():
        case = json.loads(line)
        text = continue_text(model, tokenizer, case["prompt"], MAX_NEW_TOKENS)
        right = is_right(text, case["answer"])
        form = "chat" if corpus.IM_START in case["prompt"] else "plain"
        for bucket in (bucket_of(case["distance_tokens"]), form):
            counts[bucket][0] += right
            counts[bucket][1] += 1
        if show_wrong and not right:
            print(f"distance {case['distance_tokens']}: {text.strip()!r}, not {case['answer']!r}")
    return counts


def print_score(counts):
    for bucket in sorted((b for b in counts if isinstance(b, tuple))) + ["plain", "chat"]:
        right, cases = counts[bucket]
        name = bucket if isinstance(bucket, str) else f"{bucket[0]} to {bucket[1]} tokens"
        print(f"{name:>20}: {right} of {cases} ({right / cases:.1%})")
    right = counts["plain"][0] + counts["chat"][0]
    cases = counts["plain"][1] + counts["chat"][1]
    print(f"{'all':>20}: {right} of {cases} ({right / cases:.1%})")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("make", "score", "say"), help="see above")
    parser.add_argument("text", nargs="?", default="Once upon a time", help="the prompt, for say")
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "model",
                        help="the folder that train.py wrote")
    parser.add_argument("--prompts", type=pathlib.Path, default=HERE / "recall.jsonl")
    parser.add_argument("--chat", action="store_true", help="say: the text is a user's message")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="for say")
    parser.add_argument("--show-wrong", action="store_true", help="score: print the wrong answers")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    return parser.parse_intermixed_args()  # flags may stand before the text


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.command == "make":
        tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
        make(arguments.prompts, tokenizer)
        return
    model, tokenizer = load(arguments.model)
    if arguments.command == "score":
        print_score(score(arguments.prompts, model, tokenizer, arguments.show_wrong))
    else:
        prompt = corpus.user_turn(arguments.text) if arguments.chat else arguments.text
        print(continue_text(model, tokenizer, prompt, arguments.max_new_tokens))


if __name__ == "__main__":
    main()
