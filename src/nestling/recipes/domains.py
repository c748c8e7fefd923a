"""A stream of domains: what levels keep of the old and learn of the new, beside fine-tuning and what is known against forgetting.

A model pre-trained on Python source reads C++, then English, then Python again, and is scored on held-out files of all
three after each. Several processes may share the study.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nestling import models
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.reader import mixed
from nestling.continual.replay import Replay
from nestling.continual.scenario import Scenario, domains
from nestling.continual.scores import Scores
from nestling.data import ByteTokenizer
from nestling.recipes import plots, plots_continual
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching, spread
from nestling.train.config import TrainConfig
from nestling.train.evaluation import spread_windows
from nestling.train.loop import train

ORDER = ("python", "cpp", "english", "python")
MODEL, SEEDS = "transformer++", (0, 1, 2)
TOKENS, HELD_OUT = 2**17, 2**15
"""Bytes of each experience, and of each held-out set."""
LENGTH, SEGMENT = 512, 256
"""Bytes of a training sequence, which is also the context, and of a segment."""
STEPS, BATCH, RATE = 600, 4, {"transformer++": 4e-3, "hope": 4e-3}


def pretrained(model: str, seed: int) -> Any:
    """A nano model trained on Python source, from the folder of caches; trained now where it is not there."""
    root = Path(os.environ.get("NESTLING_CACHE") or Path.home() / ".cache" / "nestling").expanduser()
    config = TrainConfig(
        model=model,
        size="nano",
        data="python",
        steps=STEPS,
        batch_size=BATCH,
        sequence_length=LENGTH,
        learning_rate=RATE[model],
        seed=seed,
        evaluate_every=STEPS,
        checkpoint_every=300,
        threads=1,
    )
    folder = root / "runs" / f"domains-{model}-{seed}"
    train(config, folder, resume=True, progress=False)
    return models.load(folder / "model")


@cache
def scenario(seed: int) -> Scenario[np.ndarray]:
    """The stream of one seed; pre-training saw other, and some of the same, Python source."""
    return domains(ORDER, TOKENS, seed, HELD_OUT)


def judge(learner: Learner, text: np.ndarray) -> dict[str, float]:
    """Bits a byte of windows that start anew: with all levels, as a mixture of the time scales, and of each view."""
    windows = spread_windows(text, LENGTH, len(text) // LENGTH)
    said = torch.stack([_said(learner, windows, view) for view in range(len(learner.levels) + 1)])
    found = {f"view {view}": _bits(one) for view, one in enumerate(said)}
    return {"all": _bits(said[-1]), "mixture": _bits(mixed(said)[0]), **found}


@torch.no_grad()
def _said(learner: Learner, windows: Tensor, view: int) -> Tensor:
    """Log-probabilities (B, T - 1) of the tokens of windows (B, T)."""
    with learner.isolated(view) as model:
        rows = []
        for ids in windows.split(16):
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            rows.append(torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0])
    return torch.cat(rows)


def _bits(said: Tensor) -> float:
    return -said.double().mean().item() / math.log(2)
