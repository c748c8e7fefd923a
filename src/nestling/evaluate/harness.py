"""Any causal language model for lm-eval: ours with their tokenizers, and transformers' with theirs.

Our models have no maximum length: a context is never cut, a document of any length is read in one go. Models with a
maximum length lose the beginning of what is too long, as in lm-eval's own class for them.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from nestling import models
from nestling.data import load_tokenizer
from nestling.errors import InputError
from nestling.evaluate.scoring import Answer, Scored, Scorer
from nestling.models.registry import PREFIX

GENERATED = 256
"""Tokens to generate at most, where a task says nothing; lm-eval's default."""


class CausalLM(TemplateLM):
    """A model and its tokenizer as lm-eval wants them.

    Args:
        model: a causal language model of transformers, ours among them.
        tokenizer: one of nestling.data, or of transformers; encodes as it does by itself (with a beginning token, if
            that is its way).
        batch_size: rows read together.
        max_length: tokens a model reads at most; None: the model's own limit, for ours none.
        progress: show a bar on stderr; None: if stderr is a terminal.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int = 16,
        max_length: int | None = None,
        progress: bool | None = None,
    ):
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.max_length = max_length or _limit(model)
        self.label, self._hidden, self._stream = "", None if progress is None else not progress, sys.stderr
        self.score = Scorer(model, batch_size, self.eot_token_id)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        own = getattr(self.tokenizer, "eos_id", None)
        return self.tokenizer.eos_token_id if own is None else own

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        begin = getattr(self.tokenizer, "bos_token_id", None)
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text."""
        if hasattr(self.tokenizer, "eos_id"):
            return self.tokenizer.encode(string).tolist()
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **special)

    def tok_decode(self, tokens: Sequence[int]) -> str:
        """Text of ids, without special tokens where the tokenizer knows any."""
        own = hasattr(self.tokenizer, "eos_id")
        return self.tokenizer.decode(tokens) if own else self.tokenizer.decode(tokens, skip_special_tokens=True)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        """An answer for each request (context, continuation); both are encoded together, then parted."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each request's whole text (text,), every token given all before it that the model reads."""
        rows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length or len(tokens) or 1, 1)
            for context, scored in map(make_disjoint_window, windows):
                rows.append(Scored((*context, *scored), len(context)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._answers(rows), strict=True):
            totals[owner] += value
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[Answer]:
        rows = []
        for _, context, continuation in requests:
            if self.max_length and len(continuation) > self.max_length:
                raise InputError(
                    f"max_length: a continuation of {len(continuation)} tokens is to be scored, but the model reads "
                    f"{self.max_length}; give a higher max_length, or another model."
                )
            cut = max(0, len(context) + len(continuation) - self.max_length - 1) if self.max_length else 0
            rows.append(Scored((*context, *continuation)[cut:], len(context) - cut))
        return self._answers(rows)

    def _answers(self, rows: Sequence[Scored]) -> list[Answer]:
        found: list[Answer] = [(0.0, True)] * len(rows)
        with self.bar(len(rows)) as bar:
            for answers in self.score(rows):
                for i, answer in answers:
                    found[i] = answer
                bar.update(len(answers))
        return found

    @torch.no_grad()
    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The text that follows each request's context (context, settings), up to the first of `until`."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        contexts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        found = [""] * len(requests)
        with self.bar(len(requests)) as bar:
            for members in groups.values():
                members.sort(key=lambda i: (-len(contexts[i]), contexts[i]))
                for part in _parts(members, self.batch_size):
                    texts = self._continued([contexts[i] for i in part], dict(requests[part[0]].args[1]))
                    for i, text in zip(part, texts, strict=True):
                        found[i] = text
                    bar.update(len(part))
        return found

    def _continued(self, contexts: Sequence[list[int]], settings: dict[str, Any]) -> Iterator[str]:
        """Continuations of some contexts under the same settings."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(settings, GENERATED))
        until, new = [*options.pop("until", [])], options.pop("max_gen_toks")
        if not options.get("do_sample"):
            options = {k: v for k, v in options.items() if k != "temperature"} | {"do_sample": False}
        room = self.max_length - new if self.max_length else None
        if room is not None and room < 1:
            raise InputError(f"max_length: {self.max_length} leaves no context before the {new} tokens to generate.")
        contexts = [tokens if room is None else tokens[-room:] for tokens in contexts]
        width = max(map(len, contexts))
        ids = torch.tensor([[self.eot_token_id] * (width - len(tokens)) + tokens for tokens in contexts])
        mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in contexts])
        out = self.model.generate(
            ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=new,
            eos_token_id=self.eot_token_id,
            pad_token_id=self.eot_token_id,
            stopping_criteria=StoppingCriteriaList([_Until(self, until, width)]),
            **options,
        )
        for row in out[:, width:].tolist():
            end = row.index(self.eot_token_id) if self.eot_token_id in row else len(row)
            yield postprocess_generated_text(self.tok_decode(row[:end]), until, None)

    def bar(self, total: int) -> tqdm:
        """Progress on stderr, named by `label`."""
        return tqdm(total=total, desc=self.label, disable=self._hidden, leave=False, file=self._stream)


class _Until(StoppingCriteria):
    """Stop a row whose new text, behind `width` columns of context, has one of the stop strings."""

    def __init__(self, lm: CausalLM, until: Sequence[str], width: int):
        self.decode, self.until, self.width = lm.tok_decode, [stop for stop in until if stop], width
        self.reach = max((len(stop.encode()) for stop in self.until), default=0) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = [self.decode(row[-self.reach :]) for row in input_ids[:, self.width :].tolist()]
        done = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _parts(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (order[i : i + size] for i in range(0, len(order), size))


def _limit(model: Any) -> int | None:
    """The most tokens that a model of transformers reads; None where its configuration names none, as ours."""
    config = model.config.get_text_config()
    named: Iterable[Any] = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return next((limit for limit in named if limit), None)


def model_folder(folder: Path) -> Path:
    """Where the model lies: `folder`, or its subfolder `model` where it is the folder of a run."""
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def load(folder: Path, device: torch.device, **options: Any) -> CausalLM:
    """The model and tokenizer of a run folder, of a folder that save_pretrained wrote, ours or transformers'.

    `options` are those of CausalLM. Raises InputError for a folder that holds no model, or a damaged one.
    """
    folder = model_folder(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"folder: '{folder}' holds no model (no config.json with a model_type); give a run folder or one that "
            "save_pretrained wrote."
        ) from None
    if str(kind).startswith(PREFIX):
        model, tokenizer = models.load(folder, dtype="auto"), load_tokenizer(folder)
    else:
        model, tokenizer = _transformers(folder)
    return CausalLM(model.to(device), tokenizer, **options)


def _transformers(folder: Path) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto"), tokenizer
    except Exception as error:  # safetensors, tokenizers and transformers raise types without a common base
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"folder: '{folder}' holds no causal language model with its tokenizer ({reason}).") from error
