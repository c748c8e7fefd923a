"""A text of its own, a store cache of its own and a model small enough for hundreds of steps a second."""

import random

import pytest

from nestling.train.config import TrainConfig

FIELDS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Path of about 60 kB of words in random order."""
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "home"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(1200)))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Stores are kept under pytest's folder; one for all tests of a process."""
    folder = tmp_path_factory.getbasetemp() / "stores"
    monkeypatch.setenv("NESTLING_CACHE", str(folder))
    return folder


@pytest.fixture
def config(text):
    """Eight steps, a checkpoint every third."""
    return TrainConfig(
        model="transformer++",
        fields=FIELDS,
        data=str(text),
        steps=8,
        batch_size=4,
        sequence_length=16,
        warmup_steps=2,
        evaluate_every=4,
        evaluate_windows=4,
        checkpoint_every=3,
    )
