"""A text of its own and a store cache of its own."""

import random

import pytest

FIELDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {"steps": 4, "batch_size": 2, "sequence_length": 16, "fields": FIELDS, "workers": 1, "progress": False}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Path of about 60 kB of words in random order."""
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "home"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(1200)))
    return path


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Stores are kept under pytest's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NESTLING_CACHE", str(tmp_path_factory.getbasetemp() / "recipe-stores"))
        yield


@pytest.fixture(scope="session")
def small():
    """Arguments of a demo that takes seconds."""
    return SMALL


@pytest.fixture(scope="session")
def finished(text, tmp_path_factory, cache):
    """A demo's folder and result."""
    from nestling.recipes.demo import demo

    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out, data=str(text), **SMALL)
