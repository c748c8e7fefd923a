"""The configuration of a training run. Light on purpose: the command line reads it before torch is loaded."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro

from nestling.errors import InputError


def parse_fields(items: list[str]) -> dict[str, Any]:
    """`["hidden_size=64", "tie=false", "name=x"]` -> `{"hidden_size": 64, "tie": False, "name": "x"}`.

    A value is JSON where it parses as JSON and plain text otherwise. Raises InputError for an item without `=`.
    """
    fields = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise InputError(f"set: '{item}' is no KEY=VALUE; write for instance hidden_size=64")
        try:
            fields[key] = json.loads(text)
        except json.JSONDecodeError:
            fields[key] = text
    return fields


OPTIMIZERS: dict[str, tuple[str, float]] = {
    "adamw": ("AdamW", 2e-3),
    "muon": ("Muon", 1.6e-2),
    "adamuon": ("AdaMuon", 3.2e-2),
    "m3": ("M3", 1.6e-2),
    "delta-momentum": ("DeltaMomentum", 1.6e-2),
    "dmgd": ("DMGD", 2e-2),
    "dgd": ("DGD", 6.4),
    "dgd-corrected": ("DGD", 6.4),
    "ggd": ("GGD", 6.4),
}
"""Name -> class in nestling.optim (AdamW is torch's) and the learning rate where none is given.

dgd is the paper's letter, which rests where layers' answers equal their surprises; dgd-corrected where these are zero.
What else sets them apart is in `nestling.train.optimizer.SETTINGS`.
"""


Fields = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE",
        instance_from_str=parse_fields,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda fields: [f"{key}={json.dumps(value)}" for key, value in fields.items()],
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run."""

    model: str = "hope"
    """Model name, one of nestling.models.names()."""
    size: str = "nano"
    """Preset, one of nestling.models.sizes()."""
    fields: Annotated[Fields, tyro.conf.arg(name="set")] = dataclasses.field(default_factory=dict)
    """Model configuration fields that replace the preset's."""
    data: str = "python"
    """Corpus: python, cpp, english, a file, a folder, or hub:NAME."""
    tokenizer: str = "bytes"
    """bytes, bpe:N (trained on the corpus, N entries), or a tokenizer file."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences an optimizer step."""
    sequence_length: int = 256
    """Tokens a sequence."""
    optimizer: Annotated[
        str,
        tyro.conf.arg(
            help="Vectors and embeddings have AdamW (under dgd and ggd biases move with their weights). One of "
            + ", ".join(OPTIMIZERS)
            + "."
        ),
    ] = "adamw"
    learning_rate: Annotated[
        float | None,
        tyro.conf.arg(
            help="Peak of the schedule. None takes the optimizer's own: "
            + ", ".join(f"{name} {rate:g}" for name, (_, rate) in OPTIMIZERS.items())
            + "."
        ),
    ] = None
    min_learning_rate_fraction: float = 0.1
    """The cosine ends at this fraction of the peak."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled decay; matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    clip: float | None = 1.0
    """The gradient's largest norm; None never clips."""
    accumulate: int = 1
    """Pieces in which a batch is worked through (less memory, same gradient)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs forward and backward under autocast; parameters and optimizer stay float32."""
    seed: int = 0
    """Decides initial parameters, data order and every other draw."""
    evaluate_every: int = 250
    """Steps between evaluations; the last step is always evaluated."""
    evaluate_windows: int = 64
    """Validation windows, the same ones each time."""
    checkpoint_every: int = 250
    """Steps between checkpoints; the first and the last step always have one."""
    keep: int = 2
    """Checkpoints kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    compile: bool = False
    """Run the model through torch.compile."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (less memory, slower)."""
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""
    max_seconds: float | None = None
    """Stop after this time with a checkpoint; --resume goes on."""


# What says how a run is carried out rather than what it computes; a resumed run may change these.
FREE = {"accumulate", "compile", "device", "gradient_checkpointing", "threads"}
FREE |= {"evaluate_every", "evaluate_windows", "checkpoint_every", "keep", "max_seconds"}

_AT_LEAST_ONE = ("steps", "batch_size", "accumulate", "evaluate_every", "evaluate_windows", "checkpoint_every", "keep")

# field, what is allowed, in words
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    *((name, lambda value: value >= 1, "at least 1") for name in _AT_LEAST_ONE),
    ("sequence_length", lambda value: value >= 2, "at least 2, since a token is predicted from those before it"),
    ("optimizer", lambda value: value in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    ("learning_rate", lambda value: value is None or 0 < value < math.inf, "above 0 and finite"),
    ("min_learning_rate_fraction", lambda value: 0 <= value <= 1, "between 0 and 1"),
    ("warmup_steps", lambda value: value >= 0, "at least 0"),
    ("weight_decay", lambda value: 0 <= value < math.inf, "at least 0 and finite"),
    ("betas", lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)"),
    ("clip", lambda value: value is None or 0 < value < math.inf, "above 0 and finite, or None for no clipping"),
    ("precision", lambda value: value in ("float32", "bfloat16"), "float32 or bfloat16"),
    ("seed", lambda value: 0 <= value < 2**63, "between 0 and 2**63 - 1"),
    ("device", lambda value: value in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
    ("threads", lambda value: value is None or value >= 1, "at least 1, or None for torch's choice"),
    ("max_seconds", lambda value: value is None or value > 0, "above 0, or None for no limit"),
]


def check(config: TrainConfig) -> None:
    """Raise InputError, naming the field, its value and what is allowed, for the first value out of range."""
    for name, allowed, words in _RULES:
        value = getattr(config, name)
        try:
            fits = allowed(value)
        except TypeError:  # text where a number belongs
            fits = False
        if not fits:
            raise InputError(f"{name}: {value} is not allowed; give {words}")
    if config.batch_size % config.accumulate:
        raise InputError(
            f"accumulate: {config.accumulate} does not divide batch_size, which is {config.batch_size}; give a divisor"
        )


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The configuration that `dataclasses.asdict` wrote as JSON; InputError for a field it does not know."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(TrainConfig)})
    if unknown:
        raise InputError(f"the run's configuration has unknown fields ({', '.join(unknown)}); start a new run")
    return TrainConfig(**{**values, "betas": tuple(values.get("betas", TrainConfig.betas))})


def differences(ours: TrainConfig, theirs: TrainConfig) -> list[str]:
    """Names of the fields in which two configurations describe different runs (those in FREE aside)."""
    a, b = (json.loads(json.dumps(dataclasses.asdict(config))) for config in (ours, theirs))
    return [name for name in a if name not in FREE and a[name] != b[name]]


def peak(config: TrainConfig) -> float:
    """The highest learning rate: the one given, or the optimizer's own."""
    return OPTIMIZERS[config.optimizer][1] if config.learning_rate is None else config.learning_rate


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step 0, 1, ..., steps - 1: linear warm-up, then a cosine whose last step is at the floor."""
    highest = peak(config)
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    floor = config.min_learning_rate_fraction
    return highest * (floor + (1 - floor) * cosine)
