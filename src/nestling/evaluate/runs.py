"""What a run folder says about a run: `config.json`, `metrics.jsonl` and, where the run was evaluated, `results.json`.

`results.json` is one object; every key may be missing:

    bits_per_byte        {"256": 2.1, "2048": 2.2}: validation, by length of the windows read
    loss_by_position     {"positions": [...], "loss": [...]}: bits a byte predicted after so many tokens
    tokens_per_second    training speed, measured with nothing else running
    generated_per_second tokens a second when writing
    state_bytes, state_tokens   size of the memory behind so many tokens
    system               the nested system behind model and optimizer, `nestling.levels.System.as_dict`
    sample               {"prompt": ..., "text": ...}
    command              how to do it again
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nestling.errors import InputError


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: what to call it, and the content of its files."""

    name: str
    folder: Path
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def train(self) -> dict[str, Any]:
        """The training configuration."""
        return self.config.get("train", {})

    @property
    def bits(self) -> float | None:
        """Bits per byte that one nat per token is; None before the first evaluation."""
        return next((line["valid_bpb"] / line["valid_loss"] for line in self.evaluations if line["valid_loss"]), None)

    @property
    def bits_per_byte(self) -> dict[int, float]:
        """Validation bits per byte by window length: the evaluation's, else the training loop's last."""
        if found := self.results.get("bits_per_byte"):
            return {int(length): value for length, value in found.items()}
        length = self.train.get("sequence_length")
        return {length: self.evaluations[-1]["valid_bpb"]} if self.evaluations and length else {}


def load(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; a run is called after its model, and after its folder where models would not tell runs apart.

    Raises:
        InputError: no folder given, or one that holds no readable run.
    """
    if not folders:
        raise InputError("runs: no run folder was given; give at least one that `nestling train` or `demo` wrote.")
    runs = [_load(Path(folder)) for folder in folders]
    models = [run.name for run in runs]
    if len(set(models)) == len(models):
        return runs
    return [dataclasses.replace(run, name=_relative(run.folder, [r.folder for r in runs])) for run in runs]


def title(model: str) -> str:
    """How a model's name is written in text: "hope-attention" is Hope-Attention."""
    return "-".join(part[:1].upper() + part[1:] for part in model.split("-"))


def _load(folder: Path) -> Run:
    if not (folder / "config.json").is_file():
        raise InputError(f"run '{folder}' has no config.json; give a folder that `nestling train` wrote.")
    config = _json(folder / "config.json")
    lines = _lines(folder / "metrics.jsonl")
    results = _json(folder / "results.json") if (folder / "results.json").exists() else {}
    return Run(
        name=title(config["train"]["model"]) if "model" in config.get("train", {}) else folder.name,
        folder=folder,
        config=config,
        steps=[line for line in lines if "loss" in line],
        evaluations=[line for line in lines if "valid_bpb" in line],
        results=results,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); restore it, or leave this run out.") from None
    if not isinstance(value, dict):
        raise InputError(f"'{path}' holds no JSON object; restore it, or leave this run out.")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; a run that is still going may have half a line at the end."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except ValueError as error:
        raise InputError(f"'{path}' holds a line that is not JSON ({error}); remove that line.") from None


def _relative(folder: Path, others: list[Path]) -> str:
    """The part of a folder's path that tells it from the others."""
    parts = [other.resolve().parts for other in others]
    shared = next((i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), 0)
    return "/".join(folder.resolve().parts[shared:]) or folder.name
