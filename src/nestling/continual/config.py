"""The settings of `nestling learn`. Light on purpose: the command line reads them before torch is loaded."""

import dataclasses

from nestling.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """What is read, by which levels, and what is noted meanwhile."""

    read: tuple[str, ...] = ()
    """Text, in this order: files, folders, - for standard input, python, cpp, english or hub:NAME."""
    levels: tuple[str, ...] = ()
    """NAME=EVERY[:LR[:RULE]], for instance fast=512:1e-3 slow=4096:3e-4:gd, or the fields of a Level as a JSON object.
    None given: those of the memory there, those that the model declares, or the standard ones."""
    limit: float | None = None
    """Trust region of every level: the largest norm of a matrix's deviation, relative to the matrix."""
    replay: float | None = None
    """Old segments read again for each new one, from a sample of all that was read. None: the memory's, or 0."""
    recall: str | None = None
    """What predicts: all levels together, or the mixture of the time scales. None: the memory's, or all."""
    held_out: tuple[str, ...] = ()
    """Old text that the model should not forget, named as in --read; it is scored, never read."""
    score_every: int = 65_536
    """Tokens between two scores of the held-out text."""
    score_size: int = 65_536
    """Characters of each held-out text to score."""
    save_every: int = 65_536
    """Tokens between two saves of the memory."""
    seed: int = 0
    """Decides what is replayed."""
    device: str = "auto"
    """auto, cpu or cuda."""


OF_MEMORY = ("levels", "limit", "replay", "recall")
"""Settings that a memory keeps by itself."""


def check(config: LearnConfig) -> None:
    """InputError for a number out of range or a name given twice."""
    for name in ("score_every", "score_size", "save_every"):
        if (value := getattr(config, name)) < 1:
            raise InputError(f"{name}: {value} is not allowed; give at least 1")
    if config.replay is not None and not 0 <= config.replay < float("inf"):
        raise InputError(f"replay: {config.replay} is not allowed; give 0 for none, or more")
    if config.recall not in (None, "all", "mixture"):
        raise InputError(f"recall: '{config.recall}' is unknown; give all or mixture")
    if config.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: '{config.device}' is unknown; give auto, cpu or cuda")
    if config.read.count("-") > 1 or "-" in config.held_out:
        raise InputError("-: standard input can be read once, and not be held out; give files for the rest")
    if twice := {name for name in config.held_out if config.held_out.count(name) > 1}:
        raise InputError(f"held_out: '{min(twice)}' is given twice; name each text once")
