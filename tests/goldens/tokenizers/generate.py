#!/usr/bin/env python3
"""Trains the small tokenizers of this folder and writes what Hugging Face's tokenizers make of texts.

    pip install tokenizers==0.23.3
    python3 tests/goldens/tokenizers/generate.py

Writes, beside itself, <base>.json (a tokenizer.json) and vectors.json: for each base and each variant
of it (fields of the base that are replaced) the ids of every text, and the text of id sequences, most
of which are not what any text encodes to. The same script gives the same files.
"""

import copy
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

FOLDER = pathlib.Path(__file__).resolve().parent
SEED = 20240601

CORPUS = """The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't care.
She said: "I'll be there at 10:45, won't you?" and they've been waiting since 1999-12-31.
def main(argv):\n    for i in range(10):\n        print(f"{i}: {argv[i]}")\n    return 0\n
Ein schöner Tag in München, über den Dächern. Ça va très bien, merci à tous les élèves.
Быстрая коричневая лиса прыгает через ленивую собаку. Привет, мир! Как дела сегодня?
我们今天在苹果公司工作。今天天气很好，我们去公园散步。日本語のテキストもあります。
한국어 텍스트도 조금 있습니다. 안녕하세요 세계. Καλημέρα κόσμε, τι κάνεις;
The numbers 1 22 333 4444 55555 666666 and 3.14159; prices: $1.00, €2,50, £3.
the of and to in is that it for was on are as with his they at be this from have or by one had
not but what all were when we there can an your which their said if do will each about how up out
""" * 4

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\t\n", "  \n  ", "\r\n",
    "a", " a", "a ", "  a", "a  ", "a  b", "a \n b", "   leading", "trailing   ",
    "Hello world", " Hello world", "Hello  world", "HELLO World", "hello\nworld", "hello\n\n  world",
    "The quick brown fox jumps over the lazy dog.",
    "I'm you're we've they'll it's don't I'd 'S 'T IT'S DON'T WE'LL 'tis ' 's",
    "1 12 123 1234 12345 1234567890 3.14 1,000 ½ ² Ⅷ ٣ ४५ 10:45",
    "snake_case camelCase x+=1; // comment /* y */ #hash @at a/b\\c {\"k\": [1, 2]}",
    "Ünïcödé naïve café résumé", "e\u0301a\u0300o\u0302 A\u030a \u212b \u1e9b\u0323",
    "q\u0307\u0323 q\u0323\u0307 a\u0315\u0300\u05ae\u0301b",
    "\u1100\u1161\u11a8 \uac00\u11a8 각 한글", "가나다 라마바",
    "你好，世界！我们在apple工作1314天～", "日本語のテキスト、カタカナ。", "कान्ति हिन्दी", "កាន់តែពិសេស",
    "שלום עולם مرحبا بالعالم", "😀😁🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ✅ 😶‍🌫️", "a😀b 😀 c", "\U0001f469\U0001f3fd\u200d\U0001f4bb",
    "zero\u200bwidth\u200cjoin\u200der", "nbsp\u00a0here\u00a0\u00a0", "\u3000全角\u3000空白", "\u2028line\u2029para\u0085nel",
    "\u180emongolian\u180e vowel", "bom\ufeff", "\u0000nul\u0001\u001f\u007f", "\ufffd\ufffe", "\U0010ffff\U000e0001",
    "tab\tseparated\tvalues", "mixed \t \n \r\n  whitespace\u000b\u000c!",
    "▁", "▁▁ a▁b", "Ġ Ċ ġ", "<0x41><0x0A>", "<unk>", "<s>", "</s>", "<s>Hello</s>", "a <s> b", "<s></s><s>", "  <s>  x",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> <|endoftext|>", "<|endoftext", "<|im_start|>user\nHi<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "[L] x [L]y", "x   [L]   y", "x   [R]   y", "x[B]y  [B]  z", "[R] \n [L] [B][R]  [R]",
    "word xword wordx word. (word) _word wordé", "word", "wordword word", "Naïve nai\u0308ve",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethethethethethethethethethethethethethethethethethethethethe",
    "ababababababababababababababababababababababababababababababababababab the",
    "x" * 40 + " " * 40 + "\n" * 40 + "." * 40,
    "    for i in range(10):\n        print(i)\n\n\n    return\n",
    "¡Hola! ¿Qué tal?", "…—–“quoted”‘s", "l'élève d'été", "ſs 'ſ 'K \u212a",
]

SPLIT_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPLIT_QWEN = SPLIT_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLIT_O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def added(token_id, content, special=True, **flags):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special, **flags}


def split_regex(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def split_string(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": {"String": pattern}, "behavior": behavior, "invert": invert}


def byte_level(add_prefix_space=False, use_regex=True):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def template(bos, bos_id, eos=None, eos_id=None):
    pieces = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    if eos is not None:
        pieces.append({"SpecialToken": {"id": eos, "type_id": 0}})
        special[eos] = {"id": eos, "ids": [eos_id], "tokens": [eos]}
    return {"type": "TemplateProcessing", "single": pieces,
            "pair": pieces + [{"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special}


def train(pre_tokenizer, vocab_size, alphabet, lines):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return json.loads(tokenizer.to_str())


def byte_level_base(pre_tokenizer, vocab_size):
    base = train(pre_tokenizer, vocab_size, pre_tokenizers.ByteLevel.alphabet(), CORPUS.split("\n"))
    base["decoder"] = byte_level(add_prefix_space=True)
    return base


def make_gpt2():
    base = byte_level_base(pre_tokenizers.ByteLevel(add_prefix_space=False), 900)
    size = len(base["model"]["vocab"])
    base["model"]["merges"] = [" ".join(pair) for pair in base["model"]["merges"]]  # The older spelling.
    base["added_tokens"] = [added(size, "<|endoftext|>")]
    base["post_processor"] = byte_level()
    return base


def make_llama3():
    pre = json.dumps(sequence("pretokenizers", split_regex(SPLIT_LLAMA3), byte_level(use_regex=False)))
    base = byte_level_base(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), 800)
    base["pre_tokenizer"] = json.loads(pre)
    model = base["model"]
    model["ignore_merges"] = True
    # Words that no merge leads to: only ignore_merges finds them.
    for word in ["Ġzebra", "mirror", "Ġ12"]:
        model["vocab"][word] = len(model["vocab"])
    size = len(model["vocab"])
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    base["added_tokens"] = [added(size + i, name) for i, name in enumerate(names)]
    base["post_processor"] = sequence("processors", byte_level(), template(names[0], size))
    return base


def make_qwen():
    base = byte_level_base(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_QWEN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), 800)
    base["normalizer"] = {"type": "NFC"}
    size = len(base["model"]["vocab"])
    base["added_tokens"] = [
        added(size, "<|endoftext|>"), added(size + 1, "<|im_start|>"), added(size + 2, "<|im_end|>"),
        added(size + 3, "<tool_call>", special=False), added(size + 4, "</tool_call>", special=False),
        added(size + 5, "[L]", special=False, lstrip=True), added(size + 6, "[R]", rstrip=True),
        added(size + 7, "[B]", lstrip=True, rstrip=True),
        added(size + 8, "word", special=False, single_word=True, normalized=True),
        added(size + 9, "na\u00efve", special=False, normalized=True)]
    base["post_processor"] = byte_level()
    return base


def make_llama2():
    lines = ["▁" + line.replace(" ", "▁") for line in CORPUS.split("\n")]
    trained = train(pre_tokenizers.Metaspace(prepend_scheme="never"), 700, [], lines)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    # As in SentencePiece the merged pieces come first, the characters after; some characters are left out.
    ordered = sorted(trained["model"]["vocab"], key=trained["model"]["vocab"].get)
    dropped = set("€£ΚαλίνЁх苹")
    kept = [t for t in ordered if not dropped & set(t)]
    for token in [t for t in kept if len(t) > 1] + [t for t in kept if len(t) == 1] + ["▁▁", "▁▁▁▁"]:
        vocab.setdefault(token, len(vocab))
    merges = [pair for pair in trained["model"]["merges"] if not dropped & set("".join(pair))]
    merges += [["▁", "▁"], ["▁▁", "▁▁"]]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"},
                               {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        "pre_tokenizer": None,
        "post_processor": template("<s>", 1),
        "decoder": sequence("decoders", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                            {"type": "ByteFallback"}, {"type": "Fuse"},
                            {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": merges},
    }


def variants():
    """(name, base, replaced top-level fields, replaced model fields)"""
    space = "▁"
    to_space = {"type": "Replace", "pattern": {"String": space}, "content": " "}
    metaspace = {"type": "Metaspace", "replacement": space}
    result = [(name, name, {}, {}) for name in ["gpt2", "llama3", "qwen", "llama2"]]
    result += [
        ("gpt2_prefix_space", "gpt2", {"pre_tokenizer": byte_level(add_prefix_space=True)}, {}),
        ("gpt2_no_regex", "gpt2", {"pre_tokenizer": byte_level(use_regex=False)}, {}),
        ("gpt2_o200k", "gpt2", {"pre_tokenizer": sequence(
            "pretokenizers", split_regex(SPLIT_O200K), byte_level(use_regex=False))}, {}),
        ("gpt2_deepseek", "gpt2", {"pre_tokenizer": sequence(
            "pretokenizers", split_regex(r"\p{N}{1,3}"), split_regex("[一-龥぀-ゟ゠-ヿ]+"),
            split_regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(use_regex=False))}, {}),
        ("gpt2_digits", "gpt2", {"pre_tokenizer": sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level())}, {}),
        ("gpt2_digit_runs", "gpt2", {"pre_tokenizer": sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": False}, byte_level(use_regex=False))}, {}),
        ("gpt2_words", "gpt2", {"pre_tokenizer": sequence(
            "pretokenizers", split_regex(r"\w+|[^\w\s]+|[^\S\n]+", "Removed", True), byte_level(use_regex=False))}, {}),
        ("gpt2_normalized_regex", "gpt2", {"normalizer": sequence(
            "normalizers", {"type": "Replace", "pattern": {"Regex": r"\s{2,}"}, "content": "_"},
            {"type": "NFC"})}, {}),
        ("llama3_merges", "llama3", {}, {"ignore_merges": False}),
        ("llama2_bos_eos", "llama2", {"post_processor": template("<s>", 1, "</s>", 2)}, {}),
        ("llama2_normalized_specials", "llama2", {"added_tokens": [
            added(i, t, normalized=True) for i, t in enumerate(["<unk>", "<s>", "</s>"])]}, {}),
        ("llama2_unknown", "llama2", {}, {"byte_fallback": False}),
        ("llama2_unknowns", "llama2", {}, {"byte_fallback": False, "fuse_unk": False}),
        ("llama2_legacy_metaspace", "llama2", {
            "normalizer": None, "pre_tokenizer": {**metaspace, "add_prefix_space": True},
            "decoder": {**metaspace, "add_prefix_space": True}}, {}),
        ("llama2_no_prefix", "llama2", {
            "normalizer": None,
            "pre_tokenizer": {**metaspace, "add_prefix_space": False, "prepend_scheme": "never", "split": True},
            "decoder": {**metaspace, "prepend_scheme": "never", "split": True}}, {}),
        ("llama2_first", "llama2", {
            "normalizer": None, "pre_tokenizer": {**metaspace, "prepend_scheme": "first", "split": False}}, {}),
        ("llama2_always", "llama2", {
            "normalizer": None, "pre_tokenizer": {**metaspace, "prepend_scheme": "always", "split": False},
            "decoder": {**metaspace, "prepend_scheme": "always", "split": False}}, {}),
        ("gemma", "llama2", {
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": space},
            "pre_tokenizer": split_string(" ", "MergedWithPrevious"),
            "decoder": sequence("decoders", to_space, {"type": "ByteFallback"}, {"type": "Fuse"})}, {}),
    ]
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            result.append((f"split_{behavior}_{invert}", "llama2", {
                "normalizer": None, "pre_tokenizer": split_string("e", behavior, invert)}, {}))
    return result


def apply(base, fields, model_fields):
    tokenizer = copy.deepcopy(base)
    tokenizer.update(fields)
    tokenizer["model"].update(model_fields)
    return tokenizer


def id_sequences(tokenizer, rng):
    """Ids that no text gives: bytes of half characters, runs of byte tokens, specials anywhere."""
    size = tokenizer.get_vocab_size()
    specials = [t for t, token in tokenizer.get_added_tokens_decoder().items()]
    byte_ids = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in range(256)]
    if None in byte_ids:
        byte_ids = list(range(256))
    sequences = [byte_ids, byte_ids[128:192], specials, [size + 5, 70, size]]
    for text in ["€x", "😀", "né", "\n\n", "한a국"]:
        raw = [byte_ids[b] for b in text.encode()]
        sequences += [raw, raw[:-1], raw[1:], raw[:2] + [300] + raw[2:]]
    for _ in range(40):
        pool = rng.choice([byte_ids, byte_ids[128:], list(range(size)), specials + byte_ids[180:] + list(range(300, 330))])
        sequences.append([rng.choice(pool) for _ in range(rng.randint(1, 12))])
    return sequences


def vectors(tokenizer_json, is_base, has_own_decoder, rng):
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json))
    encode, decode = [], []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        encode.append(ids)
        # Where the text comes back as it was there is nothing to note.
        if is_base and tokenizer.decode(ids, skip_special_tokens=False) != text:
            decode.append([ids, tokenizer.decode(ids, skip_special_tokens=True),
                           tokenizer.decode(ids, skip_special_tokens=False)])
    if is_base or has_own_decoder:
        for ids in id_sequences(tokenizer, rng):
            decode.append([ids, tokenizer.decode(ids, skip_special_tokens=True),
                           tokenizer.decode(ids, skip_special_tokens=False)])
    with_special = tokenizer.encode("Hello world", add_special_tokens=True).ids
    return {"encode": encode, "hello_world_with_special": with_special, "decode": decode if is_base else decode[:30]}


def main():
    bases = {"gpt2": make_gpt2(), "llama3": make_llama3(), "qwen": make_qwen(), "llama2": make_llama2()}
    for name, base in bases.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    cases = []
    base_ids = {}
    for name, base, fields, model_fields in variants():
        tokenizer_json = apply(bases[base], fields, model_fields)
        case = vectors(tokenizer_json, name == base, "decoder" in fields, random.Random(SEED))
        if name == base:
            base_ids[base] = case["encode"]
        # Of a variant only the texts that it encodes otherwise than its base.
        case["encode"] = {str(i): ids for i, ids in enumerate(case["encode"])
                          if name == base or ids != base_ids[base][i]}
        cases.append({"name": name, "base": base, "fields": fields, "model_fields": model_fields, **case})
    lines = [json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases]
    (FOLDER / "vectors.json").write_text(
        '{"texts":' + json.dumps(TEXTS, separators=(",", ":")) + ',\n"cases":[\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
