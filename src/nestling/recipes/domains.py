"""A stream of domains: what levels learn and keep, beside fine-tuning and its known remedies.

A small model pre-trained on Python source reads C++, then English, then other Python source, and is scored on held-out
files of all three after each. All settings were chosen on tuning files and a stream of their own with the model of seed
0; the report has other files and streams, and two models more. Several processes may share the study.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nestling import models
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.presets import LEVELS
from nestling.continual.reader import mixed
from nestling.continual.replay import Replay
from nestling.continual.scenario import Scenario, domains
from nestling.continual.scores import retained_share
from nestling.continual.stacking import stack_levels
from nestling.data import ByteTokenizer, batch, open_store
from nestling.data.store import cache_folder
from nestling.recipes import plots, plots_continual
from nestling.recipes.cells import Cell, Found, Row, Study, Table, matching
from nestling.train.config import TrainConfig, learning_rate
from nestling.train.evaluation import spread_windows
from nestling.train.loop import train

ORDER = ("python", "cpp", "english", "python")
SEEDS = (0, 1, 2)
TOKENS, HELD_OUT = 2**16, 2**14
"""Bytes of each experience, and of each held-out set."""
LENGTH, SEGMENT = 512, 256
"""Bytes of a training sequence, which is also the longest context, and of a segment."""
STEPS, BATCH, RATE = 600, 4, 4e-3
"""Of pre-training."""


@dataclass(frozen=True)
class Arm:
    """One way to read the stream. protect: strength of EWC. replay: with a buffer that holds pre-training text too."""

    levels: Sequence[Level] = ()
    protect: float = 0.0
    replay: bool = False


def _one(rate: float, **more: Any) -> list[Level]:
    return [Level("only", SEGMENT, rate, **more)]


def _slower(every: int, absorb: float) -> Level:
    return Level(f"every {every}", every, 0.0, "gd", absorb=absorb)


_FAST = Level("fast", SEGMENT, 1e-3)
ARMS: dict[str, Arm] = {
    "frozen": Arm(),
    "fine-tuning": Arm(_one(2.5e-4)),
    "EWC": Arm(_one(5e-4), protect=30.0),
    "replay": Arm(_one(5e-4), replay=True),
    "dynamic evaluation": Arm(_one(1e-3, retention=0.99)),
    "one level": Arm([_FAST]),
    "two levels": Arm([_slower(2048, 0.03), _FAST]),
    "three levels": Arm(LEVELS),
    "four levels": Arm([_slower(32768, 0.2), _slower(8192, 0.15), _slower(1024, 0.1), _FAST]),
    "three levels, own errors": Arm(
        [Level(one.name, one.every, 3e-4, absorb=one.absorb) for one in LEVELS[:2]] + [_FAST]
    ),
    "three levels, by depth": Arm(
        [
            Level("slow", 16384, 1e-3, where=(0, 1)),
            Level("middle", 2048, 1e-3, where=(2,)),
            Level("fast", SEGMENT, 1e-3, where=(3,)),
        ]
    ),
    "three levels and EWC": Arm(LEVELS, protect=30.0),
    "three levels and replay": Arm(LEVELS, replay=True),
}
REFERENCE = "fine-tuning"
FEW = ("frozen", "fine-tuning", "replay", "three levels")
"""Arms of the models besides the first."""
MODELS = {"transformer++": tuple(ARMS), "llama": FEW}


def cells(found: Found) -> Iterator[Cell]:
    """Model by model and seed by seed, every arm."""
    for model, arms in MODELS.items():
        for seed in SEEDS:
            for arm in arms:
                yield {"model": model, "arm": arm, "seed": seed}


def run(cell: Cell) -> Row:
    """Read the whole stream."""
    return follow(cell["model"], ARMS[cell["arm"]], cell["seed"], "report")


def follow(kind: str, arm: Arm, seed: int, split: str) -> Row:
    """Read the stream of `seed` with a model of that seed, and look at the held-out set `split` of each domain.

    Returns:
        R: by recall ("all", "mixture") a row before the stream and one after each experience, of bits a byte by domain.
        views: the same of each number of levels. read: bits a byte of each experience, as it was read. bytes: of the
        memory. distance: of each level.
    """
    scene = scenario(seed)
    learner = _learner(pretrained(kind, seed), arm)
    old = np.asarray(scene.stream[0].train)
    if arm.replay:
        learner.remember(old)
    if arm.protect:
        learner.protect(old, arm.protect)
    looks, read = [_look(learner, scene, split)], []
    for experience in scene.stream[1:]:
        text = np.asarray(experience.train)
        read.append(round(learner.read(text).nats / math.log(2) / TOKENS, 4))
        if arm.protect:
            learner.protect(text, arm.protect)
        looks.append(_look(learner, scene, split))
    return {
        "R": {recall: _matrix(looks, recall) for recall in ("all", "mixture")},
        "views": {str(view): _matrix(looks, f"view {view}") for view in range(len(arm.levels) + 1)},
        "read": read,
        "bytes": sum(level["bytes"] for level in learner.report()),
        "distance": [round(level["distance"], 4) for level in learner.report()],
    }


def _learner(model: Any, arm: Arm) -> Learner:
    """Ours take levels as they are; a model of transformers is turned into a learner."""
    options = {"context": LENGTH, "replay": Replay(256, 1.0) if arm.replay else None}
    if isinstance(model.config, models.NestlingConfig) or not arm.levels:
        return Learner(model, ByteTokenizer(), arm.levels, **options)
    return stack_levels(model, arm.levels, ByteTokenizer(), where="shared", **options)


@cache
def scenario(seed: int) -> Scenario[np.ndarray]:
    """The stream of one seed; pre-training draws from all Python source, so it may have seen some of the last part."""
    return domains(ORDER, TOKENS, seed, HELD_OUT)


def _look(learner: Learner, scene: Scenario[np.ndarray], split: str) -> dict[str, list[float]]:
    """By recall and by view, bits a byte of each domain."""
    found = [judge(learner, np.asarray(getattr(scene.held_out[domain], split))) for domain in scene.domains]
    return {name: [one[name] for one in found] for name in found[0]}


def _matrix(looks: Sequence[dict[str, list[float]]], name: str) -> list[list[float]]:
    return [[round(bits, 4) for bits in look[name]] for look in looks]


def judge(learner: Learner, text: np.ndarray) -> dict[str, float]:
    """Bits a byte of windows that start anew: with all levels, as a mixture of the time scales, and of each view."""
    windows = spread_windows(text, LENGTH, len(text) // LENGTH)
    said = torch.stack([_said(learner, windows, view) for view in range(len(learner.levels) + 1)])
    found = {f"view {view}": _bits(one) for view, one in enumerate(said)}
    return {"all": _bits(said[-1]), "mixture": _bits(mixed(said)), **found}


@torch.no_grad()
def _said(learner: Learner, windows: Tensor, view: int) -> Tensor:
    """Log-probabilities (B, T - 1) of the tokens of windows (B, T)."""
    rows = []
    with learner.isolated(view) as model:
        for ids in windows.split(16):
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            rows.append(torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0])
    return torch.cat(rows)


def _bits(said: Tensor) -> float:
    return -said.double().mean().item() / math.log(2)


def pretrained(kind: str, seed: int) -> Any:
    """A nano model trained on Python source, kept in the folder of caches; trained now where it is not there."""
    folder = cache_folder() / "runs" / f"domains-{kind}-{seed}"
    config = TrainConfig(
        model="transformer++" if kind == "llama" else kind,
        data="python",
        steps=STEPS,
        batch_size=BATCH,
        sequence_length=LENGTH,
        learning_rate=RATE,
        seed=seed,
        evaluate_every=STEPS,
        checkpoint_every=200,
        threads=1,
    )
    if kind == "llama":
        return _llama(folder, config)
    train(config, folder, resume=True, progress=False)
    return models.load(folder / "model")


def _llama(folder: Path, config: TrainConfig) -> Any:
    """The same with transformers' Llama of the same sizes, on the same batches."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    shape = models.create("transformer++", "nano").config
    torch.manual_seed(config.seed)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=256, tie_word_embeddings=True, **{name: getattr(shape, name) for name in sizes})
    )
    optimizer = torch.optim.AdamW(model.parameters(), betas=config.betas, weight_decay=config.weight_decay, fused=True)
    text = open_store("python").train
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        ids = batch(text, config.seed, step, 0, config.batch_size, config.sequence_length)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return model


def table(found: Found) -> Table:
    """Arm by arm, what it learnt and what it forgot."""
    lines = []
    for model, arms in MODELS.items():
        for arm in arms:
            rows = [row for row in matching(found, {"model": model, "arm": arm}) if "R" in row]
            for recall in ("all", "mixture") if rows and ARMS[arm].levels else ("all",):
                if rows:
                    lines.append([model, arm, recall, str(len(rows)), *_line(found, rows, recall)])
    columns = ["model", "arm", "recall", "seeds", *MEASURES, "gain", "forgetting", "memory MiB"]
    notes = [
        f"Bits a byte on held-out files, windows of {LENGTH}; {TOKENS:,} bytes an experience. Gain: below the frozen "
        "model, on the experience's own domain right after it.",
        "Forgot: from there, or from the start for Python, to the end of English.",
        f"gain, forgetting: of cpp and english, and of python and cpp, as shares of {REFERENCE}'s with all levels.",
        "recall mixture: the time scales are weighed by how well each has predicted the context so far.",
    ]
    return Table("A stream of domains", columns, lines, notes)


MEASURES = ("gain cpp", "gain english", "gain python again", "forgot python", "forgot cpp")


def measures(R: Sequence[Sequence[float]]) -> list[float]:
    """MEASURES of one run's matrix: a row before and after cpp, english, python; columns python, cpp, english."""
    start, cpp, english, again = R
    gains = [start[1] - cpp[1], start[2] - english[2], start[0] - again[0]]
    return [*gains, english[0] - start[0], english[1] - cpp[1]]


def _line(found: Found, rows: Sequence[Row], recall: str) -> list[str]:
    each = [measures(row["R"][recall]) for row in rows]
    reference = matching(found, {"model": rows[0]["model"], "arm": REFERENCE})
    theirs = [measures(row["R"]["all"]) for row in reference if "R" in row]
    said = [f"{mean(values):.3f} ± {pstdev(values):.3f}" for values in zip(*each, strict=True)]
    shares = ["", ""]
    if theirs:
        shares = [f"{_share(each, theirs, columns):.0%}" for columns in (slice(0, 2), slice(3, 5))]
    return [*said, *shares, f"{rows[0]['bytes'] / 2**20:.1f}"]


def _share(ours: Sequence[list[float]], theirs: Sequence[list[float]], columns: slice) -> float:
    return retained_share(*(mean(sum(one[columns]) for one in runs) for runs in (ours, theirs)))


def draw(found: Found) -> Figure:
    """R of three arms, and the domains' losses over time."""
    figure, axes = plots.panels(4, 4.6, 4.4)
    shown = (("fine-tuning", "all"), ("three levels", "all"), ("three levels", "mixture"))
    for axis, (arm, recall) in zip(axes, shown, strict=False):
        rows = [row for row in matching(found, {"model": "transformer++", "arm": arm}) if "R" in row]
        if rows:
            R = np.mean([row["R"][recall] for row in rows], 0)
            plots_continual.matrix(axis, R, ORDER[1:], ("python", "cpp", "english"), (1, 2, 0), "lower")
        axis.set_title(f"{arm}, {recall}: bits a byte", fontsize=11)
    rows = [row for row in matching(found, {"model": "transformer++", "arm": "three levels"}) if "R" in row]
    if rows:
        curves = np.asarray([row["R"]["mixture"] for row in rows])
        lines = {domain: curves[..., i].tolist() for i, domain in enumerate(("python", "cpp", "english"))}
        experiences = [(domain, TOKENS) for domain in ORDER[1:]]
        plots_continual.over_time(axes[3], [i * TOKENS for i in range(len(ORDER))], lines, experiences, "bits a byte")
        axes[3].legend()
    return figure


domains_study = Study("domains", cells, run, table, draw)
