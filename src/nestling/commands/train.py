"""`nestling train`."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

import tyro

from nestling.commands import Command
from nestling.errors import InputError
from nestling.train.config import TrainConfig, from_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a model on text; --resume goes on where a run stopped, with that run's settings."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=TrainConfig)
    out: Path
    """Folder of the run."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out; other arguments need not be repeated."""

    def run(self) -> dict[str, Any]:
        """The summary of `nestling.train.loop.train`."""
        from nestling.train.loop import train

        return train(self.config, self.out, self.resume)

    def remembered(self) -> Self | None:
        """The settings that a run being resumed was started with, as defaults."""
        path = self.out / "config.json"
        if not (self.resume and path.exists()):
            return None
        try:
            config = from_dict(json.loads(path.read_text(encoding="utf-8"))["train"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}): give another --out for a new run") from error
        return dataclasses.replace(self, config=config, resume=False, json=False)

    def interrupted(self) -> str:
        """How to go on."""
        return f"interrupted; continue from the last checkpoint with: nestling train --out {self.out} --resume"
