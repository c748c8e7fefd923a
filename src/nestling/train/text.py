"""The text of a run, tokenized as its configuration says."""

from pathlib import Path

from nestling.data import Store, open_store, train_bpe
from nestling.errors import InputError
from nestling.train.config import TrainConfig


def open_text(config: TrainConfig, learnt: Path) -> Store:
    """The store of `config.data`; `learnt` is where a vocabulary that an earlier start of the run learnt would lie.

    Raises InputError where the tokenizer or the text cannot be used, or a split is shorter than one sequence: better
    now than at the first evaluation.
    """
    store = _tokenized(config, learnt)
    for split, tokens in (("training", store.train), ("validation", store.valid)):
        if len(tokens) < config.sequence_length:
            raise InputError(
                f"sequence_length: {config.sequence_length} is longer than the {split} split of '{config.data}', which "
                f"has {len(tokens)} tokens; give a shorter one, or more data"
            )
    return store


def _tokenized(config: TrainConfig, learnt: Path) -> Store:
    kind, _, size = config.tokenizer.partition(":")
    if config.tokenizer == "bytes":
        return open_store(config.data)
    if kind != "bpe":
        return open_store(config.data, config.tokenizer)
    if not size.isdecimal():
        raise InputError(f"tokenizer: '{config.tokenizer}' has no size; write for instance bpe:4096")
    if learnt.exists():
        return open_store(config.data, learnt)
    return open_store(config.data, train_bpe(open_store(config.data).texts("train"), int(size)))
