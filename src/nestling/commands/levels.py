"""`nestling levels`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from nestling.commands import Command
from nestling.errors import InputError
from nestling.train.config import OPTIMIZERS, Fields, TrainConfig, from_dict

_SUFFIXES = (".svg", ".html")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels(Command):
    """Show the nested system behind a model and its optimizer: what updates how often, and what it learns from."""

    folder: tyro.conf.Positional[Path | None] = None
    """A run folder, or a folder with a model."""
    model: str | None = None
    """In place of a folder: a model name, one of nestling.models.names()."""
    size: str = "nano"
    """Preset of --model."""
    fields: Annotated[Fields, tyro.conf.arg(name="set")] = dataclasses.field(default_factory=dict)
    """Configuration fields that replace the preset's."""
    optimizer: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"What trains it: {', '.join(OPTIMIZERS)} or none. None takes the run's, or adamw for a new model."
        ),
    ] = None
    step_tokens: int | None = None
    """Tokens that an optimizer step reads, batch size times sequence length. None takes the run's, or 2,048."""
    out: Path | None = None
    """Also draw it: a file that ends in .svg or .html."""
    width: int = 960
    """Width of an .svg in pixels; below 640 names stand above their bars."""

    def run(self) -> dict[str, Any]:
        """`System.as_dict`, and the path of the drawing."""
        self._check()
        from nestling.levels import inspect

        model, train = self._model()
        step_tokens = train.batch_size * train.sequence_length if self.step_tokens is None else self.step_tokens
        system = inspect(model, self._optimizer(model, train), step_tokens)
        if self.out is not None:
            self._draw(system)
        return system.as_dict() | ({} if self.out is None else {"out": str(self.out)})

    def show(self, result: dict[str, Any]) -> str:
        """The table, and where the drawing lies."""
        from nestling.levels import System

        drawn = "" if self.out is None else f"\nThe drawing: {self.out.resolve()}"
        return System.from_dict(result).table() + drawn

    def _check(self) -> None:
        if (self.folder is None) == (self.model is None):
            raise InputError("folder or --model is needed, and only one of the two: give a run folder or a model name")
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"folder: '{self.folder}' does not exist; give a run folder or a model folder")
        if self.folder is not None and self.fields:
            raise InputError("set: fields are for --model; leave them out, the folder's model has its own")
        if self.out is not None and self.out.suffix not in _SUFFIXES:
            raise InputError(f"out: '{self.out}' must end in {' or '.join(_SUFFIXES)}")

    def _model(self) -> tuple[Any, TrainConfig]:
        """The model, without memory for its weights where it is a new one, and how it is trained."""
        import torch

        from nestling import models

        if self.folder is None:
            with torch.device("meta"):
                return models.create(str(self.model), self.size, **self.fields), TrainConfig()
        inner = self.folder / "model"
        return models.load(inner if inner.is_dir() else self.folder), _trained(self.folder / "config.json")

    def _optimizer(self, model: Any, train: TrainConfig) -> Any:
        """What trains the model by `nestling train`; None for none."""
        from nestling.train.optimizer import build

        if self.optimizer is None:
            return build(model, train)
        if self.optimizer == "none":
            return None
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"optimizer: '{self.optimizer}' is unknown; give one of {', '.join((*OPTIMIZERS, 'none'))}"
            )
        return build(model, dataclasses.replace(train, optimizer=self.optimizer, learning_rate=None))

    def _draw(self, system: Any) -> None:
        if self.out is not None and self.out.suffix == ".svg":
            system.to_svg(self.out, self.width)
        elif self.out is not None:
            system.to_html(self.out, f"Levels of {self.model or self.folder}")


def _trained(path: Path) -> TrainConfig:
    """How the run was trained; the usual settings for a folder that holds a model only."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")).get("train")
        return TrainConfig() if values is None else from_dict(values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a run folder or a model folder") from error
