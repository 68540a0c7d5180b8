#!/usr/bin/env python3
"""Renders the published chat templates of templates/ with Jinja2, as Hugging Face transformers does.

    pip install jinja2==3.1.6
    python3 tests/goldens/chat/generate.py

Writes goldens.json: for each template every conversation as Jinja renders it, or null where the
template raises an error or leaves a message out. The same script gives the same file.
"""

import json
import pathlib

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).resolve().parent

# Template, the name that Baton gives its format, BOS, EOS.
TEMPLATES = [
    ("chatml", "chatml", "<s>", "<|im_end|>"),
    ("chatml_bos", "chatml", "<s>", "</s>"),
    ("qwen2", "chatml", "", "<|im_end|>"),
    ("smollm2", "chatml", "<|im_start|>", "<|im_end|>"),
    ("qwen2.5", "qwen2.5", "", "<|im_end|>"),
    ("qwen2.5_math", "qwen2.5", "", "<|im_end|>"),
    ("qwen3", "qwen3", "", "<|im_end|>"),
    ("llama-3", "llama-3", "<|begin_of_text|>", "<|eot_id|>"),
    ("llama-3_first_release", "llama-3", "<|begin_of_text|>", "<|end_of_text|>"),
    ("llama-3.1", "llama-3.1", "<|begin_of_text|>", "<|eot_id|>"),
    ("llama-3.2", "llama-3.1", "<|begin_of_text|>", "<|eot_id|>"),
    ("llama-2", "llama-2", "<s>", "</s>"),
    ("llama-2_older", "llama-2", "<s>", "</s>"),
    ("mistral", "mistral", "<s>", "</s>"),
    ("mistral_v0.1", "mistral", "<s>", "</s>"),
    ("mistral-v1", "mistral-v1", "<s>", "</s>"),
    ("mistral-v3", "mistral-v3", "<s>", "</s>"),
    ("mistral-v3-tekken", "mistral-v3-tekken", "<s>", "</s>"),
    ("gemma", "gemma", "<bos>", "<eos>"),
    ("gemma-3", "gemma-3", "<bos>", "<eos>"),
    ("phi-3_mini_first_release", "phi-3", "<s>", "<|endoftext|>"),
    ("phi-3_medium", "phi-3", "<s>", "<|endoftext|>"),
    ("phi-3_small", "phi-3", "<|endoftext|>", "<|endoftext|>"),
    ("phi-3.5", "phi-3", "<s>", "<|endoftext|>"),
]

SYSTEM = ("system", "You are a pirate.")
SPACED_SYSTEM = ("system", " \n Be terse. \n\n ")

CONVERSATIONS = [
    [("user", "Hello")],
    [SYSTEM, ("user", "Hello")],
    [SPACED_SYSTEM, ("user", "  spaces around \t\n")],
    [("system", ""), ("user", "empty system")],
    [("user", "Hi"), ("assistant", "Hello there."), ("user", "How are you?")],
    [SYSTEM, ("user", "Hi"), ("assistant", "Arr."), ("user", "More"), ("assistant", "Aye!"), ("user", "End")],
    [SPACED_SYSTEM, ("user", " a "), ("assistant", "\n b \u00a0"), ("user", "\u3000c\u001c ")],
    [("user", "Hi"), ("assistant", "Hello.")],
    [SYSTEM, ("user", "Hi"), ("assistant", "Hello.")],
    [("user", ""), ("assistant", ""), ("user", "")],
    [("user", "{{ messages }} {% raw %} '\"\\n <|im_end|> [/INST] \u00e9\U0001f600")],
    [SYSTEM],
    [("assistant", "I begin."), ("user", "Then I.")],
    [("user", "one"), ("user", "two")],
    [("user", "one"), ("system", "late"), ("user", "two")],
    [("user", "one"), ("assistant", "a"), ("assistant", "b")],
    [("user", "q"), ("assistant", "<think>\nhm\n\nyes\n</think>\n\nanswer"), ("user", "r")],
    [("user", "q"), ("assistant", "<think>\nhm\n</think>\n\nanswer")],
    [("user", "q"), ("assistant", "<think>a</think>b<think>c</think>\n\nd"), ("assistant", "e</think>f"), ("assistant", "g")],
    [("user", "q"), ("assistant", "call"), ("user", "<tool_response>\n1\n</tool_response>"), ("assistant", "<think>x</think>y")],
    [("assistant", "no user"), ("assistant", "at all")],
]


def render(text, conversation, bos, eos):
    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        return environment.from_string(text).render(
            messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True)
    except TemplateError:
        return None


def is_served(text, conversation, bos, eos):
    """Whether Baton renders what the template renders: not where it passes over a message without a
    word, nor where it lets a late system message stand in for an answer."""
    if "must alternate" in text and any(role == "system" for role, _ in conversation[1:]):
        return False
    probes = [(role, f"probe {i}") for i, (role, _) in enumerate(conversation)]
    prompt = render(text, probes, bos, eos)
    return all(content in prompt for _, content in probes)


def main():
    cases = []
    for name, style, bos, eos in TEMPLATES:
        text = (FOLDER / "templates" / f"{name}.jinja").read_text().removesuffix("\n")
        rendered = []
        for conversation in CONVERSATIONS:
            prompt = render(text, conversation, bos, eos)
            if prompt is not None and not is_served(text, conversation, bos, eos):
                prompt = None
            rendered.append(prompt)
        cases.append({"template": name, "style": style, "bos": bos, "eos": eos, "rendered": rendered})
    lines = [json.dumps(case, ensure_ascii=True) for case in cases]
    conversations = [json.dumps([{"role": r, "content": c} for r, c in conversation]) for conversation in CONVERSATIONS]
    (FOLDER / "goldens.json").write_text(
        '{"conversations":[\n' + ",\n".join(conversations) + '\n],\n"cases":[\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
