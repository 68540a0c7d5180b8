"""Writes the first inputs of every fuzz target below a folder: real files, messages and requests.

  /usr/bin/python3 tests/fuzz/make_corpus.py FOLDER     writes FOLDER/TARGET/seed_*, to be merged into tests/fuzz/corpus

Messages are encoded by protoc, which the build needs anyway.
"""

import json
import pathlib
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/goldens"


def encode(message_type, text):
    """A text-format message as bytes."""
    run = subprocess.run(
        ["protoc", f"--proto_path={ROOT}", f"--encode=baton.v1.{message_type}",
         "proto/inference.proto", "proto/worker.proto"],
        input=text.encode(), capture_output=True, check=True)
    return run.stdout


def record(data):
    """As FuzzInput::Record reads it."""
    return struct.pack("<H", len(data)) + data


# ---- The handoff ---------------------------------------------------------------------------------

NAME = struct.pack("<QQQII", 1, 5, 6, 1, 0)


def handoff_message(kind, fields):
    return struct.pack("<IHH", 0x564b5442, 2, kind) + fields


def handoff_messages():
    """(type, bytes) of each message."""
    ranges = struct.pack("<6I", 0, 3, 0, 10, 0, 2)
    logprobs = b"log-probabilities"
    return [
        (1, handoff_message(1, NAME + ranges + struct.pack("<QQQ", 1920, 1920, 7))),
        (2, handoff_message(2, NAME + struct.pack("<IQQIII", 1, 1, 1920, 5, 0, len(logprobs)) + logprobs)),
        (3, handoff_message(3, NAME)),
        (4, handoff_message(4, NAME)),
        (5, handoff_message(5, NAME + struct.pack("<I", 3))),
        (6, handoff_message(6, struct.pack("<QIQQ", 1, 0, 0, 7))),
        (7, handoff_message(7, struct.pack("<QIQQ", 1, 0, 0, 7))),
    ]


def ucx_address(hosts):
    fields = struct.pack("<QQHB", 11, 12, 13, len(hosts))
    for host in hosts:
        fields += struct.pack("<B", len(host)) + host
    checksum = 0xcbf29ce484222325
    for byte in fields:
        checksum = ((checksum ^ byte) * 0x100000001b3) % 2**64
    return struct.pack("<IQ", 0x32415442, checksum) + fields


def handoff_codec():
    yield from (data for _, data in handoff_messages())
    yield struct.pack("<IBQ", 0x31475442, 1, 9)
    yield ucx_address([b"127.0.0.1", b"10.1.2.3", b"::1"])


def handoff():
    """Scripts; the numbers are those of Handoff::Step."""
    raw, piece, commit, settle = 0, 2, 4, 8
    # Lease 1, epoch 1: everything in one piece, then its commit.
    whole = bytes([piece, 0, 1, 0, 0, 0x55])
    committed = bytes([commit, 0, 1, 0, 0, 0, 0, 7, 0, 0, 1])
    retire = bytes([5, 0, 0])
    transfer = bytes([6, 1, 1, 1, 0, 12, 1, 1, 0])
    tick = bytes([7, 200])
    for memory in (b"\0", b"\1", b"\2"):
        yield memory + whole + bytes([settle]) + committed + bytes([settle]) + retire + bytes([settle])
        yield memory + whole + committed + retire + whole + bytes([settle]) + tick
        # The same in six pieces: a layer and a head each.
        parts = b"".join(bytes([piece, 0, 1, 0, 5, layer, 1, head, 1, 0x33])
                         for layer in range(3) for head in range(2))
        yield memory + parts + bytes([settle]) + committed + bytes([settle])
        yield memory + transfer + bytes([settle]) + tick + transfer + bytes([settle])
    for kind, data in handoff_messages():
        yield b"\0" + bytes([raw, kind - 1, len(data)]) + data + bytes([4]) + b"abcd" + bytes([settle])
        yield b"\1" + transfer + bytes([settle, raw, kind - 1, len(data)]) + data + bytes([0, settle])


# ---- A model's files -----------------------------------------------------------------------------

def safetensors():
    entry = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
    cases = [
        ({"weight": entry}, b"12345678"),
        ({"__metadata__": {"format": "pt"}, "weight": entry,
          "bias": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
          "none": {"dtype": "I64", "shape": [0, 7], "data_offsets": [10, 10]}}, b"1234567890"),
        ({"q": {"dtype": "F8_E4M3", "shape": [1, 1, 3], "data_offsets": [0, 3]}}, b"abc"),
        ({}, b""),
    ]
    for entries, data in cases:
        header = json.dumps(entries).encode()
        yield b"\0" + struct.pack("<Q", len(header)) + header + data
        yield b"\1" + header + b"\0" + data
    for weight_map in ({"a": "a.safetensors", "b": "b.safetensors"}, {"a": "b.safetensors"}, {}):
        index = {"metadata": {"total_size": 8}, "weight_map": weight_map}
        yield b"\2" + json.dumps(index).encode()


def model_config():
    for path in sorted((GOLDENS / "models").glob("*/config.json")):
        config = json.dumps(json.loads(path.read_text()), separators=(",", ":")).encode()
        yield config
    yield config + b'\0{"eos_token_id": [1, 2]}'


def spelled(data):
    """Bytes in GPT-2's alphabet."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return "".join(chr(byte) if byte in own else chr(256 + others.index(byte)) for byte in data)


def tokenizer():
    texts = b"hello  hello\n\xc3\xa9aaaaaaaaaaa'll 123<|end|> [W] </s>\0\x01\0\x68\0"
    for number in range(3):
        yield bytes([number]) + texts
    words = ["h", "e", "l", "o", "he", "ll", "hell", "hello", " ", "a"]
    byte_level = {
        "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "merges": ["h e", "l l", "he ll", "hell o"],
                  "vocab": {spelled(word.encode()): i for i, word in enumerate(words)}}}
    pieces = {
        "decoder": {"type": "Metaspace", "replacement": "\u2581"},
        "model": {"type": "BPE", "merges": [["h", "e"], ["l", "l"], ["\u2581", "a"]], "unk_token": "?",
                  "byte_fallback": True,
                  "vocab": {"?": 0, "h": 1, "e": 2, "l": 3, "he": 4, "ll": 5, "\u2581": 6, "a": 7,
                            "\u2581a": 8, "<0xC3>": 9, "<0xA9>": 10}}}
    for base in (byte_level, pieces):
        yield json.dumps(base).encode() + b"\0\0" + texts
    # What the goldens replace in published files, each in a small one.
    vectors = json.loads((GOLDENS / "tokenizers/vectors.json").read_text())
    for case in vectors["cases"]:
        fields = {key: value for key, value in case["fields"].items()
                  if key != "added_tokens" and len(json.dumps(value)) < 2000}
        if fields:
            base = byte_level if case["base"] in ("gpt2", "llama3", "qwen") else pieces
            yield json.dumps({**base, **fields}).encode() + b"\0\0" + texts
    added = [{"id": 40, "content": "<s>", "special": True},
             {"id": 41, "content": "[W]", "single_word": True, "lstrip": True, "rstrip": True}]
    config = {"bos_token": "<s>", "eos_token": {"content": "<s>"}, "clean_up_tokenization_spaces": True}
    own_template = {"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True}
    for settings in (config, {**config, **own_template}):
        yield (json.dumps({**pieces, "added_tokens": added}).encode() + b"\0" + json.dumps(settings).encode() +
               b"\0" + texts)


def chat_format():
    conversation = b"\2be brief\0\0hello\0\1<think>x</think>hi\0\0  what?  \0"
    for path in sorted((GOLDENS / "chat/templates").glob("*.jinja")):
        if path.stat().st_size < 1200:
            yield b"\0" + path.read_bytes() + b"\0" + conversation
    for number in range(10):
        yield b"\1" + bytes([number]) + conversation
    yield b"\2\3aab\0ab\0b\0" + b"\3abaa\1ab\2baab"


# ---- Sessions and calls --------------------------------------------------------------------------

WORK = """request: %d tokens: [1, 2, 3, 4, 5, 6] prompt_tokens: 6 total_tokens_max: 12
          sampling { temperature: 0 seed: 5 } stopping { stop_token_ids: 2 } deadline_ms: 60000"""
RICH_WORK = """request: %d tokens: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] prompt_tokens: 9 total_tokens_max: 40
  sampling { temperature: 0.7 top_k: 5 top_p: 0.9 min_p: 0.05 repetition_penalty: 1.1 presence_penalty: 0.5
             frequency_penalty: 0.5 logit_bias { key: 3 value: 4 } seed: 9 logprobs: 3 }
  stopping { stop_token_ids: [2, 5] min_tokens: 3 } priority: 1"""
TICKET = "ticket { transfer_address: 'worker' incarnation: 2 lease: 3 nonce_low: 4 epoch: 1 prompt_tokens: %d }"


def api_keys():
    yield b"# who may call\nteam-a 0123456789abcdef\nops 0123456789abcdefgh admin # an operator\n"
    yield b"team-a 0123456789abcdef\nteam-a 0123456789abcdefg\n"
    yield b"\r\nteam@b\t!#$%&0123456789abcdef\r\n"


def decode_engine():
    """Scripts; the numbers are those of World::Act."""
    def command(text, router=0):
        return bytes([0, router]) + record(encode("Command", text))
    step, tick, fill, end, quiesce = b"\3", b"\5\1", b"\6\0\5\0\0", b"\7\0\0", b"\x08\0"
    answer = bytes([9, 0])
    for window in (b"\0", b"\1"):
        setup = window + b"\1"
        yield setup + command("admit { work { %s } local_prefill: true }" % (WORK % 1)) + step * 8
        yield setup + command("admit { work { %s } local_prefill: true }" % (RICH_WORK % 1)) + step * 9
        yield setup + command("admit { work { %s } }" % (WORK % 1)) + fill + step * 7 + quiesce
        yield (setup + command("admit { work { %s } }" % (RICH_WORK % 2), 1) + end +
               command("reopen { request: 2 local_prefill: true }", 1) + quiesce + step * 9)
        yield (setup + command("admit { work { %s } }" % (WORK % 1)) + end + quiesce +
               command("reopen { request: 1 }") + fill + step + command("cancel { request: 1 }"))
        yield (setup + command("admit { work { %s } local_prefill: true }" % (RICH_WORK % 1)) + step * 5 +
               command("migrate { request: 1 %s }" % (TICKET % 12)) + b"\0" + step + answer + b"\1" +
               command("migrate { request: 1 }") + step + answer + b"\2")
    many = b"".join(command("admit { work { %s } local_prefill: true }" % (RICH_WORK % i)) for i in range(1, 7))
    yield b"\0\2" + many + step * 60 + tick
    yield b"\0\0" + command("probe { probe: 4 transfer_address: 'x' incarnation: 1 }") + b"\x0a" + command("drain {}")


def prefill_engine():
    def command(text, router=0):
        return bytes([0, router]) + record(encode("Command", text))
    step, tick, answer = b"\2", b"\5\1", b"\6\0"
    for work, count in ((WORK, 6), (RICH_WORK, 11)):
        plain = "prefill { work { %s } }" % (work % 1)
        ticketed = "prefill { work { %s } %s }" % (work % 1, TICKET % count)
        yield command(plain) + step * 3
        yield command(ticketed) + b"\1" + step * 3 + answer + b"\0" + answer + b"\2"
        yield command(ticketed) + b"\1" + step + command("cancel { request: 1 }") + answer + b"\2"
        yield command(ticketed) + b"\1" + step + command(ticketed, 1) + b"\1" + step * 2 + tick + answer + b"\1"
    yield command("probe { probe: 4 transfer_address: 'x' incarnation: 1 }") + b"\7\5"


def router_core():
    ask = bytes([7, 4, 0, 6, 0, 0, 1])
    probes = bytes([2, 0, 1, 2, 0, 1])
    admitted, first, tokens, tick = bytes([2, 1, 1]), bytes([2, 0, 1, 9, 1]), bytes([5, 1, 0, 0, 2, 7, 8, 9]), b"\x08\1"
    yield probes + ask + admitted + first + tokens * 3 + tick
    yield probes + ask + ask + admitted + first + bytes([10, 1, 0]) + tick
    events = [
        "load { load { blocks_total: 100 blocks_free: 50 tokens_queued: 3 prefill_tokens_per_second: 5 } }",
        "admitted { request: 1 ticket { epoch: 1 lease: 1 nonce_low: 1 } cached_tokens: 4 }",
        "admitted { request: 1 }", "rejected { request: 1 code: 8 retry_after_ms: 100 message: 'full' }",
        "first_token { request: 1 epoch: 1 token { index: 0 id: 5 } queue_ms: 1 prefill_ms: 2 }",
        "prefill_done { request: 1 epoch: 1 transfer_tail_ms: 3 bytes_sent: 9 }",
        "prefill_failed { request: 1 epoch: 1 retryable: true transfer: true message: 'lost' }",
        "tokens { sequences { request: 1 epoch: 1 tokens { index: 0 id: 5 } tokens { index: 1 id: 6 } } }",
        "finished { request: 1 reason: FINISH_REASON_LENGTH generated_tokens: 2 decode_ms: 1 }",
        "failed { request: 1 code: 13 message: 'x' retryable: true }", "draining {}", "drained {}",
        "probe_result { probe: 1 ok: true round_trip_ms: 1 bytes_per_second: 1e9 }",
        "already_committed { request: 1 }", "migrated { request: 1 nonce: 1 transfer_ms: 1 }",
        "migrate_failed { request: 1 nonce: 1 code: 9 transfer: true }", "hello { incarnation: 5 }",
    ]
    for event in events:
        said = b"".join(bytes([0, worker]) + record(encode("Event", event)) for worker in (0, 1))
        yield probes + ask + admitted + said + ask + tick
        yield probes + ask + admitted + first + tokens + said + tick
    hello = "incarnation: 9 role: ROLE_DECODE local_prefill: true blocks_total: 4 sequences_max: 2 " \
            "model { model_fingerprint: 'model' vocab_size: 97 block_tokens: 4 }"
    yield bytes([11, 1, 0]) + record(encode("WorkerHello", hello)) + probes + ask * 3 + tick


def wire_request():
    requests = [
        "prompt: 'Once upon a time' max_tokens: 8",
        "prompt_ids { ids: [5, 6, 7] } sampling { temperature: 0 seed: 1 } stopping { ignore_eos: true } priority: 3",
        "chat { messages { role: 'system' content: 'x' } messages { role: 'user' content: 'hello' } } n: 1",
        """prompt: 'gr\u00fc\u00dfe' stop: ['a', 'bc'] generated_ids: [4, 5]
           sampling { temperature: 0.7 top_k: 5 top_p: 0.9 min_p: 0.05 repetition_penalty: 1.1 presence_penalty: 0.5
           frequency_penalty: 0.5 logit_bias { key: 3 value: 4 } seed: 9 logprobs: 3 }
           stopping { stop_token_ids: [2, 5] min_tokens: 3 }""",
    ]
    for request in requests:
        yield b"\0" + encode("GenerateRequest", request)
    yield b"\0" + encode("GenerateRequest", "prompt: 'abc'").replace(b"abc", b"a\xffc")
    yield b"\2" + encode("TokenizeRequest", "text: 'Once' add_special_tokens: true")
    yield b"\2" + encode("TokenizeRequest", "chat { messages { role: 'user' content: 'hello' } }")
    yield b"\3" + encode("DetokenizeRequest", "ids: [1, 2, 300, 4, -1] skip_special_tokens: false")


TARGETS = [api_keys, chat_format, decode_engine, handoff, handoff_codec, model_config, prefill_engine, router_core,
           safetensors, tokenizer, wire_request]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    for target in TARGETS:
        folder = pathlib.Path(sys.argv[1]) / target.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(target()):
            (folder / f"seed_{number:02}").write_bytes(data)


if __name__ == "__main__":
    main()
