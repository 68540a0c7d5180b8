"""Writes the demo model's training text: stories, recall lists, copying, counting and sums."""

import dataclasses
import zlib

from words import (ANIMALS, BOYS, COLORS, COPY_WORDS, FINDS, FOODS, GIRLS, MOODS, PEOPLE, PLACES,
                   QUALITIES, THINGS, WEATHERS)

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

# One in this many triples (person, quality, thing) is kept out of training, for the test.
HELD_OUT_ONE_IN = 8

STORY_WEIGHT = 0.3


@dataclasses.dataclass(frozen=True)
class Piece:
    """A document is a list of pieces; its text is theirs joined.

    An answer's loss counts, that of a list of random values does not: nobody could predict it.
    """
    text: str
    weight: float = 0.0  # of the loss of these tokens
    key: bool = False  # known only by looking back at a list: its accuracy is reported
    gap: bool = False  # positions may jump before this piece, as if more filler stood there


def unweighted(text):
    return [Piece(text)]


# --- Turns: the same question and answer, plain or in ChatML -------------------------------------


def user_turn(text):
    return f"{IM_START}user\n{text}{IM_END}\n{IM_START}assistant\n"


def answer_pieces(pieces, chat):
    """An answer and the token that ends it, which is learnt as part of it."""
    end = [Piece(IM_END, 1.0), Piece("\n")] if chat else [Piece(END_OF_TEXT, 1.0)]
    return pieces + end


# --- Stories -------------------------------------------------------------------------------------


def story_sentences(rng):
    """The sentences of one short story with a hero, a find, a friend and an ending."""
    girl = rng.random() < 0.5
    hero, friend = rng.sample(GIRLS if girl else BOYS, 2)
    she, her, child = ("she", "her", "girl") if girl else ("he", "his", "boy")
    capital_she = she.capitalize()
    animal, place, find = rng.choice(ANIMALS), rng.choice(PLACES), rng.choice(FINDS)
    look, mood, food = rng.choice(COLORS), rng.choice(MOODS), rng.choice(FOODS)
    weather = rng.choice(WEATHERS)

    def one_of(*sentences):
        return rng.choice(sentences)

    yield one_of(
        f"Once upon a time there was a little {child} named {hero}.",
        f"Once upon a time, a {child} named {hero} lived near the {place}.",
        f"Once upon a time there was a {child} who loved the {place}. "
        f"The {child} was called {hero}.")
    yield one_of(
        f"{hero} had a {animal} and they were best friends.",
        f"{capital_she} liked to play with {her} {animal}.",
        f"{hero} was often {mood}, and {her} {animal} was {mood} too.")
    yield one_of(
        f"One {weather} day, {hero} went to the {place}.",
        f"One {weather} morning, {she} walked to the {place} with {her} {animal}.",
        f"It was a {weather} day and {hero} wanted to see the {place}.")
    yield one_of(
        f"There {she} found a {look} {find}.",
        f"Near a tree {she} saw a {look} {find}.",
        f"The {animal} ran ahead and came back with a {look} {find}.")
    yield one_of(
        f'"What a {look} {find}!" said {hero}.',
        f'"Look at this {find}," {she} said. "It is so {look}."',
        f"{hero} picked up the {find} and looked at it for a long time.")
    yield one_of(
        f"Then {friend} came along the road and looked {mood}.",
        f"Just then {her} friend {friend} came to the {place}.",
        f"{friend} was sitting there and wanted to play too.")
    yield one_of(
        f'"Can I see the {find}?" asked {friend}.',
        f'"I lost my {find}," said {friend}. "Can you help me?"',
        f'{friend} said, "I have never seen a {find} like that."')
    yield one_of(
        f"{hero} smiled and gave the {find} to {friend}.",
        f"{hero} thought about it, and then {she} shared the {find}.",
        f'"We can share it," said {hero}.')
    yield one_of(
        f"They played with the {animal} until the sun went down.",
        f"They ran around the {place} and laughed all day.",
        f"They sat by the {place} and watched the {animal}.")
    yield one_of(
        f"In the evening they ate {food} together.",
        f"When it got dark, {hero} went home and had some {food}.",
        f"At home, {her} mother gave them {food}.")
    yield one_of(
        f"{hero} was very happy and slept well that night.",
        f"From that day on, {hero} and {friend} were good friends.",
        f"{hero} learned that it is good to share. The end.")


def story(rng):
    return " ".join(story_sentences(rng))


def story_document(rng, chat):
    if not chat:
        return [Piece(story(rng) + END_OF_TEXT, STORY_WEIGHT)]
    requests = ("Tell me a story.", "Please tell me a short story.", "Write a short story.")
    request = rng.choice(requests)
    told = [Piece(story(rng), STORY_WEIGHT)]
    return unweighted(user_turn(request)) + answer_pieces(told, chat)


def filler(rng, token_budget, count_tokens):
    """Story sentences of at most about `token_budget` tokens; may be empty."""
    sentences = []
    while True:
        for sentence in story_sentences(rng):
            token_budget -= count_tokens(" " + sentence)
            if token_budget < 0:
                return " ".join(sentences)
            sentences.append(sentence)


# --- Recall --------------------------------------------------------------------------------------


def held_out(person, quality, thing):
    return zlib.crc32(f"{person} {quality} {thing}".encode()) % HELD_OUT_ONE_IN == 0


def recall_entries(rng, count, want_held_out, taken_people=()):
    """`count` triples (person, quality, thing) in which no word appears twice."""
    people = rng.sample([person for person in PEOPLE if person not in taken_people], count)
    qualities, things = rng.sample(QUALITIES, count), set()
    entries = []
    for person, quality in zip(people, qualities):
        thing = rng.choice(THINGS)
        while thing in things or held_out(person, quality, thing) != want_held_out:
            thing = rng.choice(THINGS)
        things.add(thing)
        entries.append((person, quality, thing))
    return entries


def recall_list(entries):
    lines = [f"- {person} has a {quality} {thing}.\n" for person, quality, thing in entries]
    return "Remember this list.\n" + "".join(lines)


def recall_question(person, chat):
    """The question up to the place where the model takes over."""
    question = f"What does {person} have?"
    return user_turn(question) if chat else f"Question: {question}\nAnswer:"


def recall_answer(entry, chat):
    """The words of the answer. It names the person first, so that the value is never in the first
    token: a cluster's prefill worker makes that one, and the value must come from the KV cache
    that the decode worker got.
    """
    person, quality, thing = entry
    return ("I remember that " if chat else "") + f"{person} has a {quality} {thing}."


def recall_prompt(entries, between, asked, chat):
    """A whole prompt: the list, filler between, and one question."""
    body = recall_list(entries) + (f"\n{between}\n" if between else "")
    question = recall_question(asked[0], chat)
    if not chat:
        return f"{body}\n{question}"
    # The list and the question are one user message.
    return f"{IM_START}user\n{body}\n" + question.removeprefix(f"{IM_START}user\n")


TOKENS_PER_ENTRY = 8


def recall_document(rng, chat, token_budget, count_tokens, taken_people):
    """One list, filler, then many questions: the more answers per token, the sooner it is learnt.

    A plain answer ends with the end of text although the list is asked again after it: each
    question sees the same list before it, as it would alone.
    """
    tokens_per_question = 28 if chat else 17
    most = max(2, min(16, token_budget // (TOKENS_PER_ENTRY + tokens_per_question)))
    entries = recall_entries(rng, rng.randint(2, most), False, taken_people)
    taken_people.update(person for person, _, _ in entries)
    room = token_budget - len(entries) * (TOKENS_PER_ENTRY + tokens_per_question)
    between = filler(rng, rng.randint(0, max(0, room)), count_tokens)

    asked = rng.sample(entries, len(entries))
    first_prompt = recall_prompt(entries, between, asked[0], chat)
    first_question = recall_question(asked[0][0], chat)
    if chat:
        first_question = first_question.removeprefix(f"{IM_START}user\n")
    pieces = unweighted(first_prompt.removesuffix(first_question))
    for entry in asked:
        question = first_question if entry is asked[0] else recall_question(entry[0], chat)
        pieces.append(Piece(question, gap=entry is asked[0]))
        pieces += answer_pieces(recall_answer_pieces(entry, chat), chat)
    return pieces


def recall_answer_pieces(entry, chat):
    """recall_answer() with weights. The space before the first word belongs to a plain answer."""
    person, quality, thing = entry
    lead = "I remember that" if chat else ""
    return [Piece(lead, 0.5), Piece(f" {person}", 1.0), Piece(" has a", 0.5),
            Piece(f" {quality} {thing}", 2.0, key=True), Piece(".", 0.5)]


def recite_document(rng, token_budget, taken_people):
    """One list, then the same list in other orders: three times as many look-ups per token as with
    questions. It is the first thing to learn, and nobody asks for it later."""
    most = min(16, max(3, token_budget // (3 * TOKENS_PER_ENTRY)))
    entries = recall_entries(rng, rng.randint(2, most), False, taken_people)
    taken_people.update(person for person, _, _ in entries)
    pieces = unweighted(recall_list(entries))
    for _ in range(max(1, token_budget // (TOKENS_PER_ENTRY * len(entries)) - 1)):
        pieces.append(Piece("In another order.\n", gap=True))
        for person, quality, thing in rng.sample(entries, len(entries)):
            value = Piece(f" {quality} {thing}", 2.0, key=True)
            pieces += [Piece(f"- {person} has a"), value, Piece(".\n")]
    return pieces + [Piece(END_OF_TEXT)]


# --- Copying, counting, sums ---------------------------------------------------------------------


def task_document(question, answer_words, chat):
    asked = user_turn(question) if chat else f"{question}\nAnswer:"
    answer = " ".join(answer_words)
    answer = Piece(answer if chat else f" {answer}", 1.0)
    return unweighted(asked) + answer_pieces([answer], chat)


def copy_document(rng, chat):
    words = rng.sample(COPY_WORDS, rng.randint(3, 12))
    return task_document("Copy: " + " ".join(words), words, chat)


def count_document(rng, chat):
    first, length = rng.randint(0, 80), rng.randint(3, 15)
    numbers = [str(number) for number in range(first, first + length)]
    return task_document(f"Count from {numbers[0]} to {numbers[-1]}.", numbers, chat)


def sum_document(rng, chat):
    left, right = rng.randint(0, 12), rng.randint(0, 12)
    return task_document(f"What is {left} + {right}?", [f"{left} + {right} = {left + right}"], chat)


SHORT_DOCUMENTS = (story_document, copy_document, count_document, sum_document)


def short_document(rng, shares):
    """A document of one of SHORT_DOCUMENTS, drawn by their shares."""
    write = rng.choices(SHORT_DOCUMENTS, shares)[0]
    return write(rng, chat=rng.random() < 0.5)
