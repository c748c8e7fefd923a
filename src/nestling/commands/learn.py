"""`nestling learn`."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

import tyro

from nestling.commands import Command
from nestling.commands.table import table
from nestling.continual.config import LearnConfig, check
from nestling.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learn(Command):
    """Read text and learn from it; the model stays as it is, its memory is saved. Without --read: show the memory."""

    folder: tyro.conf.Positional[Path]
    """A run folder, a folder with a model and its tokenizer.json, or one that transformers can load."""
    memory: Path | None = None
    """Folder of the memory. None: DIR/memory."""
    config: tyro.conf.OmitArgPrefixes[LearnConfig] = dataclasses.field(default_factory=LearnConfig)
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on where reading stopped; other arguments need not be repeated."""
    more: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read new text with the memory there, behind what it has read."""
    restart: tyro.conf.FlagCreatePairsOff[bool] = False
    """Begin with an empty memory in place of the one there."""

    @property
    def home(self) -> Path:
        """Folder of the memory."""
        return self.folder / "memory" if self.memory is None else self.memory

    def run(self) -> dict[str, Any]:
        """The summary of `nestling.continual.run`: what was read, scores of held-out text, a report on every level."""
        check(self.config)
        saved = self._saved()
        self._check(saved)
        from nestling import models
        from nestling.continual import run
        from nestling.train.machine import pick_device

        model, tokenizer = models.load_any(self.folder)
        model = model.to(pick_device(self.config.device))
        if saved is None or self.restart:
            learner, progress = run.create(model, tokenizer, self.config), run.Progress()
        else:
            learner, progress = run.load(model, tokenizer, self.config, self.home), run.Progress.of(saved)
        if self.more:
            progress = run.Progress(lines=progress.lines)
        if self.config.read and not progress.finished:
            run.Run(learner, self.config, self.home, progress).read()
        return run.summary(learner, progress, self.home)

    def show(self, result: dict[str, Any]) -> str:
        """What was read, a table of held-out text, a table of levels, and where the memory lies."""
        parts = [_text(result), table(*_levels(result["levels"]))]
        if result["held_out"]:
            parts.insert(1, table(*_scores(result["held_out"])))
        if result["refused"]:
            parts.append("\n".join(["Not learnt from, the last of them:", *result["refused"][-5:]]))
        return "\n".join([*parts, f"The memory: {self.home.resolve()}"])

    def remembered(self) -> Self | None:
        """The settings that the text being read was begun with, as defaults."""
        saved = self._saved() if self.resume or self.more else None
        if saved is None or "config" not in saved:
            return None
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in saved["config"].items()
        }
        if self.more:
            values["read"] = ()
        try:
            config = LearnConfig(**values)
        except TypeError as error:
            raise InputError(f"the memory in '{self.home}' can't be gone on with ({error}); give --restart") from None
        return dataclasses.replace(self, config=config, resume=False, more=False, json=False)

    def interrupted(self) -> str:
        """How to go on."""
        memory = "" if self.memory is None else f" --memory {self.memory}"
        again = ", with the same standard input" if "-" in self.config.read else ""
        return (
            f"interrupted; go on where the memory was saved with: nestling learn {self.folder}{memory} --resume{again}"
        )

    def _saved(self) -> dict[str, Any] | None:
        """What was saved beside the memory there; None if there is no memory."""
        path = self.home / "learner.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8")).get("extra", {})
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"memory: '{path}' cannot be read ({error}); restore it, or give --restart") from error

    def _check(self, saved: dict[str, Any] | None) -> None:
        """Whether what is asked for fits what is there."""
        if not self.folder.is_dir():
            raise InputError(f"folder: '{self.folder}' does not exist; give a run folder or a model folder")
        ways = [name for name in ("resume", "more", "restart") if getattr(self, name)]
        if len(ways) > 1:
            raise InputError(f"--{' and --'.join(ways)} exclude each other; give one of them")
        if not self.config.read and (saved is None or self.more or self.restart):
            lacks = f"memory: '{self.home}' holds none" if saved is None else f"--{ways[0]} needs text"
            raise InputError(f"{lacks}; give --read with files, folders, or - for standard input")
        if saved is None or not self.config.read:
            return
        if not ways:
            raise InputError(
                f"memory: '{self.home}' holds one; add --resume to go on where it stopped, --more to read new text "
                "with it, or --restart to begin anew"
            )
        begun = saved.get("config", {}).get("read", [])
        if self.resume and list(self.config.read) != begun:
            what = f"reads '{' '.join(begun)}'" if begun else "reads nothing"
            raise InputError(
                f"read: the memory in '{self.home}' {what}, which --resume goes on with; add --more in its place to "
                f"read '{' '.join(self.config.read)}' next"
            )


def _text(result: dict[str, Any]) -> str:
    """What was read, in a line or two."""
    bits = "" if result["bits_per_byte"] is None else f" at {result['bits_per_byte']:.3f} bits per byte"
    waiting = f"; {result['pending']:,} wait in the open segment" if result["pending"] else ""
    skipped = f"\n{result['skipped']:,} files were skipped, they are not UTF-8 text" if result["skipped"] else ""
    whole = "All" if result["finished"] else "Part"
    return (
        f"{whole} of the text was read: {result['tokens']:,} tokens{bits}{waiting}{skipped}\n"
        f"The memory has learnt from {result['position']:,} tokens in all"
    )


def _scores(held_out: dict[str, dict[str, float | None]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, score in held_out.items():
        before, now = score["before"], score["now"]
        change = "none" if before is None or now is None else f"{now - before:+.3f}"
        rows.append([name, *("none" if one is None else f"{one:.3f}" for one in (before, now)), change])
    return ["held-out text", "bits per byte before", "now", "change"], rows


def _levels(levels: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = ["level", "every", "rule", "lr", "updates", "distance", "next due", "MB"]
    rows = [
        [
            one["name"],
            f"{one['every']:,}",
            one["rule"],
            f"{one['lr']:g}",
            f"{one['updates']:,}",
            f"{one['distance']:.1%}",
            f"{one['next_due']:,}",
            f"{one['bytes'] / 1e6:.1f}",
        ]
        for one in levels
    ]
    return columns, rows
