"""A small model that reads texts: a language model trained here and then frozen embeds each of them.

What a frozen model says of a text never changes, so it is computed once, and a stream of thousands of texts takes
seconds. Letters: N texts, n tokens of one, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nestling import models
from nestling.data import load_tokenizer, open_store
from nestling.data.intents import Example
from nestling.data.store import cache_folder
from nestling.errors import InputError
from nestling.train.config import TrainConfig
from nestling.train.loop import train

MODEL, CORPUS, VOCABULARY, LAYERS = "transformer++", "english", "bpe:4096", 2
STEPS, BATCH, LENGTH, RATE = 600, 16, 128, 4e-3
LONGEST = 64
"""Tokens of a text that are read."""
PLAIN = 4096
"""Pieces of the corpus by whose features all are whitened, of 4 to 27 tokens each."""
SMALLEST = 1e-3
"""Variance that whitening adds to every direction, as a share of their mean."""


def pretrained() -> tuple[Any, Any]:
    """The language model and its tokenizer, from the folder of caches; trained now where they are not there."""
    folder = cache_folder() / "runs" / f"intents-{MODEL}"
    config = TrainConfig(
        model=MODEL,
        size="nano",
        fields={"num_hidden_layers": LAYERS},
        data=CORPUS,
        tokenizer=VOCABULARY,
        steps=STEPS,
        batch_size=BATCH,
        sequence_length=LENGTH,
        learning_rate=RATE,
        evaluate_every=STEPS,
        checkpoint_every=100,
        keep=1,
        threads=1,
    )
    train(config, folder, resume=True, progress=False)
    return models.load(folder / "model"), load_tokenizer(folder / "model" / "tokenizer.json")


def plain(tokenizer: Any) -> list[np.ndarray]:
    """Ids of short pieces of the corpus, none of it labelled."""
    text = open_store(CORPUS, tokenizer).train
    pieces = np.split(text, np.cumsum(4 + np.arange(PLAIN) % 24))
    return [piece for piece in pieces[:PLAIN] if len(piece)]


@torch.no_grad()
def features(model: Any, rows: Sequence[np.ndarray], batch: int = 128) -> Tensor:
    """Means over each text's tokens of what every layer holds, the embedding first: (N, D)."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    found: Tensor | None = None
    for start in range(0, len(rows), batch):
        places = order[start : start + batch]
        ids = [torch.from_numpy(rows[place][:LONGEST].astype(np.int64)) for place in places]
        real = torch.nn.utils.rnn.pad_sequence([torch.ones(len(one)) for one in ids], batch_first=True)
        held = model.base_model(
            nn.utils.rnn.pad_sequence(ids, batch_first=True), use_cache=False, output_hidden_states=True
        ).hidden_states
        means = [(states * real[..., None]).sum(1) / real.sum(1, keepdim=True) for states in held]
        joined = torch.cat(means, 1)
        found = joined.new_empty(len(rows), joined.shape[1]) if found is None else found
        found[places] = joined
    assert found is not None
    return found


def whitened(values: Tensor, like: Tensor) -> Tensor:
    """`values` (N, D) by the affine map with which `like` (M, D) has mean 0 and covariance 1.

    A language model's features have a few directions thousands of times as wide as the rest, along which alone a
    linear layer would learn.
    """
    sizes, directions = torch.linalg.eigh(torch.cov(like.double().T))
    scale = (sizes + SMALLEST * sizes.mean()).rsqrt()
    return (values - like.mean(0)) @ ((directions * scale) @ directions.T).to(values)


class Texts:
    """A tokenizer whose tokens are whole texts. `texts`: all of them, each once."""

    def __init__(self, texts: Iterable[str]):
        self.index = {text: place for place, text in enumerate(dict.fromkeys(texts))}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The id of the text. InputError for one that is not among them."""
        if text not in self.index:
            raise InputError(f"text: '{text[:40]}' is none of the {len(self.index):,} given; give all there will be.")
        return [self.index[text]]


@dataclass(frozen=True)
class Output:
    """Scores (B, n, classes), and the cache as it was."""

    logits: Tensor
    cache: Any = None


class TextModel(nn.Module):
    """A language model whose tokens are texts: `table` (N, D) embeds them and stays as it is; each stands alone."""

    config = None

    def __init__(self, table: Tensor):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(table)
        self.lm_head = nn.Linear(table.shape[1], 1, bias=False)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table."""
        return self.embed

    def forward(self, input_ids: Tensor, cache: Any = None, use_cache: bool = False) -> Output:
        """Scores (B, n, classes) of each text of (B, n)."""
        return Output(self.lm_head(self.embed(input_ids)), cache)


class Means:
    """A Gaussian a class with one covariance, of what the frozen model says of texts; nothing is ever forgotten.

    The external learner of Momeni et al. 2025 (arXiv 2412.15563), without its large language model.

    Args:
        model: its table is read.
        tokenizer: of the texts.
        labels: all classes there will ever be.
        ridge: added to the covariance, as a share of its mean variance.
    """

    def __init__(self, model: TextModel, tokenizer: Texts, labels: Sequence[str], ridge: float):
        self.table, self.tokenizer, self.ridge = model.embed.weight.double(), tokenizer, ridge
        self.index = {label: place for place, label in enumerate(labels)}
        width = self.table.shape[1]
        self.sums, self.counts = self.table.new_zeros(len(labels), width), self.table.new_zeros(len(labels))
        self.squares = self.table.new_zeros(width, width)

    def read(self, examples: Sequence[Example]) -> None:
        """Take these in."""
        x = self._table([text for text, _ in examples])
        classes = torch.tensor([self.index[label] for _, label in examples])
        self.sums.index_add_(0, classes, x)
        self.counts += torch.bincount(classes, minlength=len(self.counts))
        self.squares += x.T @ x

    def classify(self, texts: Sequence[str], among: Sequence[str], recall: str | int = "all") -> list[str]:
        """The class among these whose Gaussian is likeliest; there is one recall."""
        means = self.sums / self.counts.clamp(min=1)[:, None]
        covariance = (self.squares - means.T @ self.sums) / self.counts.sum()
        covariance.diagonal().add_(self.ridge * covariance.diagonal().mean())
        means = means[[self.index[label] for label in among]]
        weights = torch.linalg.solve(covariance, means.T)
        scores = self._table(texts) @ weights - (means * weights.T).sum(1) / 2
        return [str(among[place]) for place in scores.argmax(1).tolist()]

    def _table(self, texts: Sequence[str]) -> Tensor:
        return self.table[[self.tokenizer.index[text] for text in texts]]
