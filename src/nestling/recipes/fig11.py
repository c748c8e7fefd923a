"""Figure 11, small: a ViT on the 8 x 8 digits of scikit-learn, one optimizer after the other at equal steps (Sec. 9.7).

Patches of 2 x 2, width 64, 2 layers. 1,797 images are split into 1,197 to train, 300 to choose the learning rate by
and 300 to test. All optimizers see the same batches with the same schedule.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from nestling.errors import InputError
from nestling.recipes import plots
from nestling.recipes.cells import Cell, Found, Row, Study, Table, curve, spread, sweep, tuned
from nestling.recipes.optimizers import DESCENTS
from nestling.train.config import TrainConfig, learning_rate
from nestling.train.optimizer import build

NAMES = ("adamw", "muon", "m3", "delta-momentum", "dmgd", "adamuon", *DESCENTS)
RATES, DESCENT_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), (1.6, 3.2, 6.4)
TUNING, SEEDS = (0, 1), (0, 1, 2, 3, 4)
STEPS, BATCH, WARMUP, EVERY, DECAY = 200, 64, 20, 20, 0.01
PATCH, WIDTH, LAYERS, HEADS, INNER = 2, 64, 2, 4, 128


class Block(nn.Module):
    """Pre-norm attention and feed-forward block; B images, T patches, D features."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer that averages its patches."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn((8 // PATCH) ** 2, WIDTH))
        self.position._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of `images (B, 8, 8)`."""
        patches = functional.unfold(images[:, None], PATCH, stride=PATCH).transpose(1, 2)
        return self.head(self.norm(self.blocks(self.embed(patches) + self.position)).mean(1))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """(images (1797, 8, 8) standardized, labels (1797,)) in one fixed random order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("fig11 needs scikit-learn, which isn't installed: pip install 'nestling[recipes]'.") from None
    found: Any = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return ((images - images.mean()) / images.std())[order], labels[order]


def cells(found: Found) -> Iterator[Cell]:
    """Each optimizer's sweep with two seeds, then five seeds at the rate that is best on the validation images."""
    for name in NAMES:
        rates = DESCENT_RATES if name in DESCENTS else RATES
        yield from sweep(found, _cell(name), rates, TUNING, SEEDS, "valid_loss")


def _cell(name: str) -> Cell:
    return {"optimizer": name, "steps": STEPS}


def run(cell: Cell) -> Row:
    """Train one ViT; losses in nats at the end, and on the way every EVERY steps."""
    images, labels = digits()
    train, valid, test = ((images[part], labels[part]) for part in (slice(1197), slice(1197, 1497), slice(1497, None)))
    torch.manual_seed(cell["seed"])
    model = ViT()
    optimizer = build(model, config := _config(cell))
    draw = torch.Generator().manual_seed(cell["seed"])
    losses, train_curve, test_curve = [], [], []
    for step in range(cell["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        picked = torch.randint(len(train[1]), (BATCH,), generator=draw)
        loss = functional.cross_entropy(model(train[0][picked]), train[1][picked])
        if not loss.item() < 1e3:
            raise InputError(f"lr: with {cell['lr']} the loss is {loss.item():.3g}; give a lower one.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % EVERY == 0:
            train_curve.append(round(mean(losses[-EVERY:]), 4))
            test_curve.append(round(_loss(model, *test)[0], 4))
    (test_loss, accuracy), train_loss, valid_loss = (
        _loss(model, *test),
        _loss(model, *train)[0],
        _loss(model, *valid)[0],
    )
    found = {"train_loss": train_loss, "valid_loss": valid_loss, "test_loss": test_loss, "test_accuracy": accuracy}
    return {k: round(v, 5) for k, v in found.items()} | {"train_curve": train_curve, "test_curve": test_curve}


def _config(cell: Cell) -> TrainConfig:
    """Optimizer and schedule, as the training loop has them."""
    rate = {"learning_rate": cell["lr"], "warmup_steps": WARMUP, "weight_decay": DECAY}
    return TrainConfig(optimizer=cell["optimizer"], steps=cell["steps"], **rate)


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    logits = model(images)
    return functional.cross_entropy(logits, labels).item(), (logits.argmax(-1) == labels).float().mean().item()


def table(found: Found) -> Table:
    """A line an optimizer, at the rate that is best on the validation images."""
    rows = []
    for name in NAMES:
        if best := tuned(found, _cell(name), TUNING, "valid_loss"):
            said = [spread(best, measure) for measure in ("train_loss", "valid_loss", "test_loss", "test_accuracy")]
            rows.append([name, f"{best[0]['lr']:g}", f"{len(best)}", *said])
    columns = ["optimizer", "lr", "seeds", "train loss", "valid loss", "test loss", "test accuracy"]
    return Table(f"A ViT on 8 x 8 digits after {STEPS} steps of {BATCH}", columns, rows)


def draw(found: Found) -> Figure:
    """Training and test loss over steps at the best rate, mean and spread over seeds; validation loss over rates."""
    figure, (train, test, rates) = plots.panels(3)
    for axes, measure in ((train, "train"), (test, "test")):
        curves = {name: [r[f"{measure}_curve"] for r in _best(found, name)] for name in NAMES}
        plots.curves(axes, curves, EVERY)
        axes.set(xlabel="step", ylabel=f"{measure} loss", yscale="log")
    plots.rates(rates, {name: curve(found, _cell(name), TUNING, "valid_loss") for name in NAMES}, "validation loss")
    rates.set_yscale("log")
    plots.legend(train)
    return figure


def _best(found: Found, name: str) -> Sequence[Row]:
    return [row for row in tuned(found, _cell(name), TUNING, "valid_loss") if "failed" not in row]


fig11 = Study("fig11", cells, run, table, draw)
