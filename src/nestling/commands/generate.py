"""`nestling generate`."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import tyro

from nestling.commands import Command
from nestling.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Continue a text with a trained model."""

    folder: tyro.conf.Positional[Path]
    """A run folder, or a folder with a model and its tokenizer.json."""
    prompt: str = ""
    """Text to continue; empty starts a new document."""
    memory: Path | None = None
    """Folder of a memory that `nestling learn` saved; then the prompt continues what it has read."""
    fresh: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --memory: the prompt begins a document of its own."""
    max_new_tokens: int = 200
    """Tokens to write at most; the model may end its document earlier."""
    temperature: float = 0.8
    """0 takes the most likely token each time."""
    top_k: int = 0
    """Draw among the k most likely tokens; 0 draws among all."""
    seed: int = 0
    """Decides the draws."""

    def run(self) -> dict[str, Any]:
        """The text written after the prompt; the number of its tokens and the speed, or the memory's position."""
        self._check()
        if not self.folder.is_dir():
            raise InputError(f"folder: '{self.folder}' does not exist; give a run folder or a model folder")
        return self._plain() if self.memory is None else self._remembering(self.memory)

    def _remembering(self, memory: Path) -> dict[str, Any]:
        """The text written behind what the memory has read, and how many tokens that has learnt from."""
        from nestling import models
        from nestling.continual.learner import Learner

        learner = Learner.load(memory, *models.load_any(self.folder))
        how = {"seed": self.seed, "fresh": self.fresh}
        text = learner.generate(self.prompt, self.max_new_tokens, self.temperature, self.top_k, **how)
        return {"prompt": self.prompt, "text": text, "memory": str(memory), "position": learner.position}

    def _plain(self) -> dict[str, Any]:
        """The text that the model as it is writes."""
        import torch

        from nestling import models
        from nestling.data import load_tokenizer

        folder = self.folder / "model" if (self.folder / "model").is_dir() else self.folder
        model: Any = models.load(folder)
        tokenizer = load_tokenizer(folder)
        torch.manual_seed(self.seed)
        prompt = tokenizer.encode(self.prompt).tolist() or [tokenizer.eos_id]
        ids = torch.tensor([prompt])
        begun = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.max_new_tokens,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
            **self._sampling(),
        )
        seconds = time.perf_counter() - begun
        new = out[0, len(prompt) :].tolist()
        text = tokenizer.decode(new[:-1] if new[-1] == tokenizer.eos_id else new)
        speed = round(len(new) / seconds, 1)
        return {"prompt": self.prompt, "text": text, "tokens": len(new), "tokens_per_second": speed}

    def show(self, result: dict[str, Any]) -> str:
        """The prompt and its continuation."""
        return result["prompt"] + result["text"]

    def _check(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: {self.max_new_tokens} is not allowed; give at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: {self.temperature} is not allowed; give 0 for greedy, or more")
        if self.fresh and self.memory is None:
            raise InputError("fresh: there is no --memory to leave aside; leave it out")
        if self.top_k < 0:
            raise InputError(f"top_k: {self.top_k} is not allowed; give 0 for all tokens, or more")

    def _sampling(self) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k}
