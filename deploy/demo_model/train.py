#!/usr/bin/env python3
"""Trains the demo model from nothing and writes it as a Hugging Face folder.

Everything is made here: the text, the byte-level BPE tokenizer, the weights. One seed decides all.

    python3 train.py --output model
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import random
import time

import numpy
import safetensors.torch
import tokenizers
import torch
from torch.nn import functional as F

import corpus
import recall
import words
from model import Llama, LlamaConfig

VOCAB_SIZE = 2048
MAX_POSITIONS = 2048
SPECIAL_TOKENS = [corpus.END_OF_TEXT, corpus.IM_START, corpus.IM_END]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the run with sequences of one length."""
    steps: int
    length: int
    batch: int
    recall_share: float  # of the sequences: made of recall lists only
    recite_share: float  # of the lists: recited rather than asked about
    short_shares: tuple  # in the order of corpus.SHORT_DOCUMENTS: story, copy, count, sum


# Looking up is learnt on short sequences, where answers are dense and steps cheap. Long distances
# come from jumps in the positions: see BatchMaker.append_document().
STAGES = (
    Stage(900, 128, 16, 0.80, 0.60, short_shares=(2, 5, 1, 2)),
    Stage(800, 256, 8, 0.75, 0.20, short_shares=(3, 2, 2, 3)),
)

# Where the learning rate's cosine would end. Training stops sooner: by then recall reaches four
# times as far as the longest sequence, and longer ones would cost much time to improve little.
COSINE_STEPS = 3000


# --- Tokenizer -----------------------------------------------------------------------------------


def tokenizer_text(rng):
    """Documents of every kind, and each list word often enough to become one token."""
    list_words = words.PEOPLE + words.QUALITIES + words.THINGS + words.COPY_WORDS
    for _ in range(400):
        yield " " + " ".join(rng.sample(list_words, len(list_words)))
    for _ in range(4000):
        pieces = corpus.short_document(rng, (1, 1, 1, 1))
        yield "".join(piece.text for piece in pieces)
    for chat in (False, True) * 500:
        entries = corpus.recall_entries(rng, 8, False)
        prompt = corpus.recall_prompt(entries, "", entries[0], chat)
        yield prompt + corpus.recall_answer(entries[0], chat)


def train_tokenizer(rng):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(tokenizer_text(rng), trainer)
    return tokenizer


# --- Batches -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Sequence:
    """Tokens, the position of each, and for each token how much predicting it counts."""
    tokens: list
    positions: list
    weights: list
    is_key: list


class BatchMaker:
    def __init__(self, tokenizer, rng):
        self.tokenizer = tokenizer
        self.rng = rng
        # Filler repeats its sentences, so most counts are already known.
        self.count_tokens = functools.lru_cache(1 << 20)(
            lambda text: len(tokenizer.encode(text).ids))

    def batch(self, stage):
        sequences = [self.sequence(stage) for _ in range(stage.batch)]
        names = [field.name for field in dataclasses.fields(Sequence)]
        tokens, positions, weights, is_key = (
            torch.tensor([getattr(sequence, name) for sequence in sequences]) for name in names)
        # The token at i + 1 is what the model must predict at i.
        return tokens[:, :-1], positions[:, :-1], tokens[:, 1:], weights[:, 1:], is_key[:, 1:]

    def sequence(self, stage):
        """Documents up to exactly one token more than the stage's length; the last one is cut."""
        sequence = Sequence([], [], [], [])
        wanted = stage.length + 1
        recall_only = self.rng.random() < stage.recall_share
        taken_people = set()
        while len(sequence.tokens) < wanted:
            room = wanted - len(sequence.tokens)
            if recall_only and room > 60:
                pieces = self.list_document(stage, room, taken_people)
            else:
                pieces = corpus.short_document(self.rng, stage.short_shares)
            self.append_document(sequence, pieces, largest_gap=MAX_POSITIONS - wanted)
        for field in dataclasses.fields(Sequence):
            del getattr(sequence, field.name)[wanted:]
        # Several gaps may pass the last position that the model is made for.
        sequence.positions = [min(position, MAX_POSITIONS - 1) for position in sequence.positions]
        return sequence

    def list_document(self, stage, room, taken_people):
        if self.rng.random() < stage.recite_share:
            return corpus.recite_document(self.rng, room, taken_people)
        chat = self.rng.random() < 0.5
        return corpus.recall_document(self.rng, chat, room, self.count_tokens, taken_people)

    def append_document(self, sequence, pieces, largest_gap):
        """Encodes the document as a whole, so that tokens are those of the joined text."""
        text = "".join(piece.text for piece in pieces)
        encoding = self.tokenizer.encode(text)
        lengths = [len(piece.text) for piece in pieces]
        piece_of_char = numpy.repeat(numpy.arange(len(pieces)), lengths)
        seen = -1
        for token, (_, end) in zip(encoding.ids, encoding.offsets):
            index = piece_of_char[end - 1]
            piece = pieces[index]
            position = sequence.positions[-1] + 1 if sequence.positions else 0
            # A jump in positions looks like filler that costs nothing to compute: it teaches short
            # sequences to look far back.
            if piece.gap and index != seen and self.rng.random() < 0.5:
                unused = largest_gap + len(sequence.tokens) - position
                position += self.rng.randint(0, max(0, unused))
            seen = index
            sequence.tokens.append(token)
            sequence.positions.append(position)
            sequence.weights.append(piece.weight)
            sequence.is_key.append(piece.key)


# --- Training ------------------------------------------------------------------------------------


def make_optimizer(model, learning_rate):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(progress, peak):
    """Linear warm-up over the first 3 %, then half a cosine down to 2 % of the peak."""
    warmup, floor = 0.03, 0.02
    if progress < warmup:
        return peak * progress / warmup
    fall = (progress - warmup) / (1 - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall)))


def batch_loss(model, batch):
    """The weighted mean loss, and how many key tokens there were and were predicted right."""
    tokens, positions, targets, weights, is_key = batch
    counted = weights > 0  # only these rows need logits
    logits = model.logits(model.hidden(tokens, positions)[counted])
    targets, weights, is_key = targets[counted], weights[counted], is_key[counted]
    losses = F.cross_entropy(logits, targets, reduction="none")
    right = (logits.argmax(dim=-1) == targets) & is_key
    return (losses * weights).sum() / weights.sum(), int(is_key.sum()), int(right.sum())


class Progress:
    """Prints a line now and then: loss and key accuracy since the last line, and the time left."""

    def __init__(self, tokens_total, every_s):
        self.tokens_total, self.every_s = tokens_total, every_s
        self.tokens_done = 0
        self.start = self.last = time.monotonic()
        self.reset()

    def reset(self):
        self.losses, self.keys, self.right = [], 0, 0

    def add(self, step, stage, loss, keys, right):
        self.tokens_done += stage.length * stage.batch
        self.losses.append(loss)
        self.keys += keys
        self.right += right
        now = time.monotonic()
        if now - self.last < self.every_s:
            return
        elapsed = now - self.start
        left = elapsed / self.tokens_done * (self.tokens_total - self.tokens_done)
        print(f"step {step} length {stage.length} loss {numpy.mean(self.losses):.3f} "
              f"lookup {self.right / max(1, self.keys):.1%} tokens {self.tokens_done / 1e6:.2f}M "
              f"elapsed {elapsed / 60:.1f} min, ETA {left / 60:.0f} min", flush=True)
        self.last = now
        self.reset()


def train(model, batches, stages, cosine_steps, learning_rate, report_every_s):
    """Returns the seconds it took."""
    optimizer = make_optimizer(model, learning_rate)
    tokens_total = sum(stage.steps * stage.length * stage.batch for stage in stages)
    progress = Progress(tokens_total, report_every_s)
    step = 0
    for stage in stages:
        for _ in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step / cosine_steps, learning_rate)
            loss, keys, right = batch_loss(model, batches.batch(stage))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            progress.add(step, stage, loss.item(), keys, right)
    return time.monotonic() - progress.start


# --- Output --------------------------------------------------------------------------------------


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(folder, tokenizer):
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "bos_token": None,
        "eos_token": corpus.END_OF_TEXT,
        "pad_token": corpus.END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    })


def write_model(folder, model, tokenizer):
    config = dataclasses.asdict(model.config)
    end_tokens = [tokenizer.token_to_id(name) for name in (corpus.END_OF_TEXT, corpus.IM_END)]
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": end_tokens,
        "pad_token_id": end_tokens[0],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    })
    write_json(folder / "generation_config.json", {
        "eos_token_id": end_tokens, "pad_token_id": end_tokens[0], "do_sample": False})
    tensors = {f"model.{name}": tensor.to(torch.bfloat16)
               for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # save_file() makes it private


def check_against_transformers(folder):
    """The folder means the same to the transformers library as to model.py."""
    import transformers  # only needed here, and slow to load

    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, _ = recall.load(folder)
    tokens = torch.randint(0, VOCAB_SIZE, (1, 1500), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(tokens.shape[1])[None]
    with torch.no_grad():
        our_logits = ours.logits(ours.hidden(tokens, positions))
        difference = (our_logits - theirs(tokens).logits).abs().max()
    assert difference < 1e-3, f"logits differ from transformers by {difference}"

    messages = [{"role": "user", "content": "Tell me a story."}]
    chat = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True)
    assert chat == corpus.user_turn("Tell me a story."), chat
    print(f"transformers agrees: largest logit difference {difference:.1e}")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    here = pathlib.Path(__file__).parent
    parser.add_argument("--output", type=pathlib.Path, default=here / "model",
                        help="folder to write")
    parser.add_argument("--seed", type=int, default=1, help="of the text and the weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="its peak")
    parser.add_argument("--scale", type=float, default=1.0,
                        help="multiplies the steps of every stage: 0.01 tries out the whole script")
    parser.add_argument("--report-every", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--skip-transformers", action="store_true",
                        help="do not compare with the transformers library")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    rng = random.Random(arguments.seed)

    tokenizer = train_tokenizer(rng)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=MAX_POSITIONS)
    model = Llama(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{config.vocab_size} tokens in the vocabulary", flush=True)

    arguments.output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(arguments.output, tokenizer)
    stages = [dataclasses.replace(stage, steps=max(1, round(stage.steps * arguments.scale)))
              for stage in STAGES]
    seconds = train(model, BatchMaker(tokenizer, rng), stages, COSINE_STEPS * arguments.scale,
                    arguments.learning_rate, arguments.report_every)
    print(f"trained in {seconds / 60:.1f} min")
    write_model(arguments.output, model, tokenizer)
    if not arguments.skip_transformers:
        check_against_transformers(arguments.output)


if __name__ == "__main__":
    main()
