"""Continual translation of a novel language, made up: two languages from a seed, learnt in context one after the other.

The paper's task (Fig. 8) reads Manchu and Kalamang. Here a language is a cipher of a small grammar of English: every
stem has a word of its own, made of the language's syllables; the order of subject, verb and object, the side of
adjectives, the endings of plural, past and object are its own too. A model reads a dictionary, the rules, and pairs of
sentences; then it translates a sentence that is none of them. Settings:

    translation-first, translation-second    one of the two languages is read, then asked for
    continual-first, continual-second        the first is read, then the second, then one of them is asked for

Whatever a length leaves free goes to pairs of sentences, in equal parts where there are two languages.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

from nestling.errors import InputError
from nestling.evaluate.questions.scores import chrf, corpus_chrf
from nestling.evaluate.questions.task import Example, Material, Task, dice, needed

NOUNS = ("dog", "cat", "bird", "horse", "farmer", "teacher", "child", "king")
NOUNS += ("fisher", "doctor", "tree", "river", "house", "stone", "boat", "fish")
VERBS = {"see": "saw", "help": "helped", "follow": "followed", "carry": "carried"}
VERBS |= {"find": "found", "like": "liked", "draw": "drew", "wash": "washed"}
ADJECTIVES = ("big", "small", "old", "young", "red", "green", "quiet", "strong")
ADVERBS = ("today", "slowly", "often", "here")
ORDERS = ("SVO", "SOV", "VSO", "VOS", "OSV", "OVS")
CONSONANTS, VOWELS = "ptkbdgmnslrwjhfz", "aeiou"
SPOKEN = {"fish": "fish", "child": "children"}
"""Plurals that don't end in -s."""


@dataclass(frozen=True)
class Phrase:
    """(the) adjective noun(s)."""

    noun: str
    adjective: str | None
    plural: bool

    def english(self) -> str:
        """As English has it."""
        noun = SPOKEN.get(self.noun, f"{self.noun}s") if self.plural else self.noun
        return " ".join(filter(None, ("the", self.adjective, noun)))


@dataclass(frozen=True)
class Sentence:
    """Subject, verb, object, adverb."""

    subject: Phrase
    verb: str
    past: bool
    object: Phrase
    adverb: str | None

    def english(self) -> str:
        """As English has it."""
        verb = VERBS[self.verb] if self.past else self.verb if self.subject.plural else _third(self.verb)
        return " ".join(filter(None, (self.subject.english(), verb, self.object.english(), self.adverb)))


def _third(verb: str) -> str:
    return f"{verb[:-1]}ies" if verb.endswith("ry") else f"{verb}es" if verb.endswith("sh") else f"{verb}s"


@dataclass(frozen=True)
class Language:
    """A cipher of the grammar: `words` by English stem, and what it does otherwise than English."""

    name: str
    words: dict[str, str]
    order: str
    adjective_first: bool
    plural: str
    past: str
    object: str

    def phrase(self, phrase: Phrase, object_: bool) -> str:
        """A phrase; endings in the order number, case."""
        noun = self.words[phrase.noun] + self.plural * phrase.plural + self.object * object_
        parts = [noun] if phrase.adjective is None else [noun, self.words[phrase.adjective]]
        return " ".join(reversed(parts) if self.adjective_first else parts)

    def sentence(self, sentence: Sentence) -> str:
        """A sentence; an adverb comes last, articles there are none."""
        parts = {
            "S": self.phrase(sentence.subject, False),
            "V": self.words[sentence.verb] + self.past * sentence.past,
            "O": self.phrase(sentence.object, True),
        }
        end = "" if sentence.adverb is None else f" {self.words[sentence.adverb]}"
        return " ".join(parts[part] for part in self.order) + end

    def dictionary(self) -> str:
        """A line a word."""
        return "\n".join(f"{word}: {stem}" for stem, word in sorted(self.words.items(), key=lambda item: item[1]))

    def rules(self) -> str:
        """The grammar in words."""
        names = {"S": "subject", "V": "verb", "O": "object"}
        return (
            f"The order is {', '.join(names[part] for part in self.order)}; an adverb comes last. "
            f"An adjective stands {'before' if self.adjective_first else 'after'} its noun. There are no articles. "
            f"A plural noun ends in -{self.plural}. A noun that is an object ends in -{self.object}, after the plural. "
            f"A verb of the past ends in -{self.past}."
        )


@cache
def languages(seed: int) -> tuple[Language, Language]:
    """The pair of a seed: no word, ending or order is in both."""
    chance = dice("languages", seed)
    orders = chance.sample(ORDERS, 2)
    first = chance.random() < 0.5
    stems = [*NOUNS, *VERBS, *ADJECTIVES, *ADVERBS]
    made = _invented(2 * len(stems) + 2, 2, chance)
    endings = _invented(6, 1, chance)
    pair = []
    for i in range(2):
        name, *words = made[i::2]
        pair.append(
            Language(
                name.capitalize(), dict(zip(stems, words, strict=True)), orders[i], first == bool(i), *endings[i::2]
            )
        )
    return pair[0], pair[1]


def _invented(count: int, syllables: int, chance: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [chance.choice(CONSONANTS) + chance.choice(VOWELS) for _ in range(syllables)]
        found["".join(parts) + chance.choice(["", "n", "k", "l"])] = None
    return list(found)


def sentence(chance: random.Random) -> Sentence:
    """A random one; there are about six million."""
    subject, object_ = chance.sample(NOUNS, 2)
    return Sentence(_phrase(subject, chance), chance.choice(list(VERBS)), chance.random() < 0.5,
                    _phrase(object_, chance), chance.choice([*ADVERBS, None]))  # fmt: skip


def _phrase(noun: str, chance: random.Random) -> Phrase:
    return Phrase(noun, chance.choice([*ADJECTIVES, None, None]), chance.random() < 0.5)


def book(language: Language, examples: list[Sentence]) -> str:
    """What there is to read about a language."""
    pairs = "\n".join(_pair(language, one) for one in examples)
    return f"# {language.name}\n{language.dictionary()}\n{language.rules()}\n{pairs}\n"


def _pair(language: Language, one: Sentence) -> str:
    return f"{language.name}: {language.sentence(one)}\nEnglish: {one.english()}"


def make(
    read: tuple[int, ...], asked: int, task: Task, material: Material, seed: int, length: int | None
) -> Iterator[Example]:
    """Endless examples; the languages and sentences to read are the seed's."""
    pair = languages(seed)
    known = [_known(pair[i], task, material, seed, needed(length, "length", task), len(read)) for i in read]
    seen = set(itertools.chain.from_iterable(known))
    context = tuple(book(pair[i], examples) for i, examples in zip(read, known, strict=True))
    language = pair[asked]
    chance = dice(task.name, seed, length)
    while True:
        one = sentence(chance)
        if one in seen:
            continue
        question = f"\n{language.name}: {language.sentence(one)}\nEnglish:"
        yield Example(context, question, [[one.english()]], f" {one.english()}", {"sentence": one, "pairs": known})


def _known(language: Language, task: Task, material: Material, seed: int, length: int, parts: int) -> list[Sentence]:
    """Sentences for the book of a language that fit into its part of the length, the question's share aside."""
    free = (length - task.room(material) - material.tokens("\n: \nEnglish:" + 100 * "x")) // parts
    free -= material.tokens(book(language, []))
    if free < 0:
        raise InputError(
            f"length: {length} tokens are too few for '{task.name}'; give {length - parts * free} or more."
        )
    chance, found = dice("pairs", language.name, seed), []
    while True:
        one = sentence(chance)
        free -= material.tokens(f"{_pair(language, one)}\n")
        if free < 0:
            return found
        found.append(one)


SETTINGS = {
    "translation-first": ((0,), 0),
    "translation-second": ((1,), 1),
    "continual-first": ((0, 1), 0),
    "continual-second": ((0, 1), 1),
}
"""Name -> (languages read, in order; the one asked for)."""

TRANSLATION = [
    Task(name, "two made-up languages, Fig. 8", partial(make, *setting), chrf, 64, corpus=corpus_chrf)
    for name, setting in SETTINGS.items()
]
