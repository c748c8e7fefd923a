"""Scenario, stream, experience: what a continual learner meets, in the words of the field.

A scenario is a stream of experiences, met one after the other, and held-out sets for each of its domains, on which
every column of the matrix R (`nestling.continual.scores`) is measured. Nothing held out is ever in the stream, and
what is tuned on (`tuning`) is never reported on (`report`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from zlib import crc32

import numpy as np

from nestling.data import Store, Tokenizer, Tokens, open_store
from nestling.data.batches import random_words
from nestling.data.intents import Example, Intents
from nestling.data.languages import artificial_text
from nestling.errors import InputError

DOCUMENTS = 16
"""A held-out set takes from a document at most its size divided by this, unless there are too few documents."""

T = TypeVar("T")
Examples = tuple[Example, ...]


@dataclass(frozen=True, eq=False)
class Experience(Generic[T]):
    """One part of a stream: `train` is token ids `(tokens,)` of a text, or labelled texts of the `classes`.

    `name` is unique in the stream (`python`, and `python 2` when the domain returns); `domain` is the column of R.
    """

    name: str
    domain: str
    train: T
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class HeldOut(Generic[T]):
    """Two disjoint sets of one domain: `tuning` to choose on, `report` to measure on."""

    tuning: T
    report: T


Stream = tuple[Experience[T], ...]


@dataclass(frozen=True, eq=False)
class Scenario(Generic[T]):
    """A stream and what is held out, by domain, in the order of R's columns."""

    name: str
    stream: Stream[T]
    held_out: Mapping[str, HeldOut[T]]

    @property
    def domains(self) -> tuple[str, ...]:
        """The columns of R."""
        return tuple(self.held_out)

    @property
    def order(self) -> tuple[int, ...]:
        """The column of each experience, as `Scores` takes it."""
        return tuple(self.domains.index(experience.domain) for experience in self.stream)

    def classes(self, count: int | None = None) -> tuple[str, ...]:
        """The classes of the first `count` experiences (None: all), in the order of the stream."""
        return tuple(label for experience in self.stream[:count] for label in experience.classes)


def domains(
    order: Sequence[str] = ("python", "cpp", "english", "python"),
    tokens: int | Sequence[int] = 2**18,
    seed: int = 0,
    held_out: int = 2**16,
    tokenizer: Tokenizer | str | Path | None = None,
    cache: str | Path | None = None,
    max_bytes: int | None = None,
) -> Scenario[Tokens]:
    """Text of one domain after the other; one that returns continues where it stopped, with text not yet met.

    Args:
        order: the domain of each experience, as `nestling.data.open_store` names data.
        tokens: of each experience: one number for all, or one for each.
        seed: chooses where in a domain's training split its text begins. The held-out sets do not depend on it, so
            what is tuned with one seed is on other documents than what is reported with another.
        held_out: tokens of each held-out set; the two sets of a domain are from different documents of its valid
            split, from the middle of each document, at most a sixteenth of the set from one if there are enough.
        tokenizer, cache, max_bytes: as of `open_store`, the same for all domains.

    Raises InputError for sizes that do not fit, or a domain whose text is too short for them.
    """
    sizes = _sizes(order, tokens, held_out)
    stores = {domain: open_store(domain, tokenizer, cache, max_bytes) for domain in dict.fromkeys(order)}
    held = {domain: _two_samples(domain, store, held_out) for domain, store in stores.items()}
    needs = _needs(order, sizes)
    texts = {domain: _stretch(domain, store.train, needs[domain], seed) for domain, store in stores.items()}
    return Scenario("domains", _stream(order, sizes, texts), held)


def artificial(
    count: int = 3, tokens: int | Sequence[int] = 2**14, seed: int = 0, held_out: int = 2**12, order: Sequence[int] = ()
) -> Scenario[Tokens]:
    """Artificial languages (`nestling.data.languages`), drawn by seed: `language 0` to `language count - 1`.

    Args:
        count: number of languages.
        tokens: bytes of each experience: one number for all, or one for each.
        seed: another seed has other languages.
        held_out: bytes of each held-out set.
        order: the language of each experience; by default every one once.

    Raises InputError for sizes that do not fit.
    """
    chosen = tuple(order) or tuple(range(count))
    if wrong := [language for language in chosen if not 0 <= language < count]:
        raise InputError(f"order: there is no language {wrong[0]}; give 0 to {count - 1}, or another count.")
    names = [f"language {language}" for language in chosen]
    sizes = _sizes(names, tokens, held_out)
    needs, held, texts = _needs(names, sizes), {}, {}
    for language in range(count):
        name = f"language {language}"
        text = artificial_text(seed, language, 2 * held_out + needs[name])
        held[name] = HeldOut(text[:held_out], text[held_out : 2 * held_out])
        texts[name] = text[2 * held_out :]
    return Scenario("artificial", _stream(names, sizes, texts), held)


def class_incremental(
    examples: Intents, experiences: int = 10, seed: int = 0, held_out: float = 0.0
) -> Scenario[Examples]:
    """Classes, shuffled by seed and dealt into experiences whose numbers of classes differ by at most one.

    Every experience is a domain of its own, with the test examples of its classes to report on, and the validation
    examples to tune on. Training examples are shuffled.

    Args:
        examples: a labelled set, as `nestling.data.intents` loads it.
        experiences: at least 1, at most the number of classes.
        seed: of the deal and of all orders.
        held_out: share of each class's training examples, in [0, 1), that is moved to the tuning set; for a set
            without validation examples, such as Banking77.

    Raises InputError for numbers out of range, or test labels that are not those of training.
    """
    _check_classes(examples, experiences, held_out)
    parts = np.array_split(np.array(_shuffled(examples.labels, seed, 0), object), experiences)
    pools = {label: [] for label in examples.labels}
    for example in _shuffled(examples.train, seed, 1):
        pools[example[1]].append(example)
    stream, held = [], {}
    for i, part in enumerate(parts, 1):
        name, classes = f"experience {i}", tuple(part)
        cuts = {label: round(held_out * len(pools[label])) for label in classes}
        moved = [example for label in classes for example in pools[label][: cuts[label]]]
        train = [example for label in classes for example in pools[label][cuts[label] :]]
        stream.append(Experience(name, name, _shuffled(train, seed, 1 + i), classes))
        held[name] = HeldOut((*_of(examples.valid, classes), *moved), _of(examples.test, classes))
    return Scenario(examples.name, tuple(stream), held)


def _sizes(order: Sequence[str], tokens: int | Sequence[int], held_out: int) -> tuple[int, ...]:
    sizes = (tokens,) * len(order) if isinstance(tokens, int) else tuple(tokens)
    if not order or isinstance(order, str):
        raise InputError(f"order: {order!r} is no list of domains; give at least one, such as ('python', 'cpp').")
    if len(sizes) != len(order):
        raise InputError(f"tokens: {len(sizes)} numbers for {len(order)} experiences; give one for all, or one each.")
    if min(sizes) < 2 or held_out < 2:
        raise InputError(f"tokens, held_out: {min(sizes)} and {held_out} are too small; give at least 2 each.")
    return sizes


def _needs(order: Sequence[str], sizes: Sequence[int]) -> Counter[str]:
    """Tokens that each domain must supply in all."""
    needs: Counter[str] = Counter()
    for domain, size in zip(order, sizes, strict=True):
        needs[domain] += size
    return needs


def _stretch(domain: str, tokens: Tokens, need: int, seed: int) -> Tokens:
    """`need` tokens on end, from an offset that seed and domain choose."""
    if need > len(tokens):
        raise InputError(
            f"tokens: the experiences of '{domain}' need {need:,}, its training split has {len(tokens):,}; give fewer."
        )
    start = int(random_words(seed, crc32(domain.encode()), 0, 1)[0]) % (len(tokens) - need + 1)
    return tokens[start : start + need]


def _stream(order: Sequence[str], sizes: Sequence[int], texts: Mapping[str, Tokens]) -> Stream[Tokens]:
    """Each experience takes the next piece of its domain's text."""
    used, visits, stream = Counter(), Counter(), []
    for domain, size in zip(order, sizes, strict=True):
        visits[domain] += 1
        name = domain if visits[domain] == 1 else f"{domain} {visits[domain]}"
        stream.append(Experience(name, domain, texts[domain][used[domain] : used[domain] + size]))
        used[domain] += size
    return tuple(stream)


def _two_samples(domain: str, store: Store, size: int) -> HeldOut[Tokens]:
    """Documents of the valid split, which are in the order of a hash, go to the two sets in turn."""
    ends = np.flatnonzero(store.valid == store.tokenizer.eos_id) + 1
    documents = [store.valid[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return HeldOut(*(_sample(domain, documents[i::2], size) for i in range(2)))


def _sample(domain: str, documents: Sequence[Tokens], size: int) -> Tokens:
    """`size` tokens from the middles of documents, from each the same number or all it has."""
    there = sum(map(len, documents))
    if there < size:
        raise InputError(
            f"held_out: {size:,} tokens are too many, each half of the valid split's documents of '{domain}' must hold "
            f"them and one has {there:,}; give fewer."
        )
    share = -(-size // DOCUMENTS)
    while sum(min(len(document), share) for document in documents) < size:
        share *= 2
    return np.concatenate([document[max(len(document) - share, 0) // 2 :][:share] for document in documents])[:size]


def _check_classes(examples: Intents, experiences: int, held_out: float) -> None:
    if not 1 <= experiences <= len(examples.labels):
        raise InputError(f"experiences: {experiences} for {len(examples.labels)} classes; give 1 to that many.")
    if not 0 <= held_out < 1:
        raise InputError(f"held_out: {held_out} is no share of the training examples; give 0 or more, below 1.")
    tested, tuned = ({label for _, label in part} for part in (examples.test, examples.valid))
    if wrong := (tested ^ set(examples.labels)) | (tuned - set(examples.labels)):
        raise InputError(f"examples: '{min(wrong)}' is in training or in test only; every class must be in both.")


def _shuffled(items: Sequence[T], seed: int, stream: int) -> tuple[T, ...]:
    return tuple(items[i] for i in random_words(seed, stream, 0, len(items)).argsort())


def _of(examples: Iterable[Example], classes: Sequence[str]) -> Examples:
    return tuple(example for example in examples if example[1] in classes)
