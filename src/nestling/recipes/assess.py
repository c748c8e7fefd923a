"""What the demo finds out about a trained model, besides its speed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nestling import models
from nestling.data import Store, Tokenizer, open_store
from nestling.levels import inspect
from nestling.train.config import TrainConfig
from nestling.train.evaluation import evaluate, evaluating, spread_windows
from nestling.train.machine import pick_device
from nestling.train.optimizer import build

STRETCH = 8
"""The longer evaluation reads windows of so many training lengths."""

CONTEXT = 8192
"""Tokens behind which the state is weighed."""

WRITTEN = 32
"""Tokens that `writer` writes a call."""

_WINDOWS, _PROMPT, _SAMPLE, _FIRST = 24, 160, 320, 8


def assess(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Results of the run in `folder` (see `nestling.evaluate.runs`), without speeds.

    Both lengths are evaluated on the same text, so that their difference is the use of context alone.
    """
    store, model = open_store(config.data), _model(config, folder)
    length, long = config.sequence_length, STRETCH * config.sequence_length
    text = spread_windows(store.valid, long, _WINDOWS)
    flat, windows = text.flatten().numpy(), len(text)
    bytes_per_token = store.bytes_per_token("valid")
    short = evaluate(model, flat, length, windows * STRETCH, config.batch_size)
    far = evaluate(model, flat, long, windows, max(1, config.batch_size // STRETCH))
    # Up to one length the short windows say the same from STRETCH times as many samples.
    positions, loss = _binned(torch.cat((short.by_position, far.by_position[length - 1 :])))
    return {
        "bits_per_byte": {
            str(length): short.bits_per_byte(bytes_per_token),
            str(long): far.bits_per_byte(bytes_per_token),
        },
        "loss_by_position": {"positions": positions, "loss": [x / np.log(2) / bytes_per_token for x in loss]},
        "evaluated_tokens": windows * long,
        "state_bytes": _state_bytes(model, store),
        "state_tokens": CONTEXT,
        "sample": _sample(model, text[windows // 2], store.tokenizer),
        "system": inspect(model, build(model, config), config.batch_size * config.sequence_length).as_dict(),
    }


def writer(config: TrainConfig, folder: Path) -> Callable[[], Any]:
    """A function that lets the run's model write `WRITTEN` tokens after a prompt of one training length."""
    model, store = _model(config, folder), open_store(config.data)
    prompt = torch.from_numpy(store.valid[: config.sequence_length].astype(np.int64))[None].to(model.device)
    return lambda: _generate(model, prompt, WRITTEN, min_new_tokens=WRITTEN, do_sample=False)


def _model(config: TrainConfig, folder: Path) -> Any:
    return models.load(folder / "model").to(pick_device(config.device)).eval()


def _state_bytes(model: Any, store: Store) -> int:
    """Bytes of what one sequence of CONTEXT tokens leaves behind."""
    ids = torch.from_numpy(np.resize(store.valid, CONTEXT).astype(np.int64))[None].to(model.device)
    with evaluating(model):
        return model(ids, use_cache=True, logits_to_keep=1).cache.nbytes


def _sample(model: Any, text: Tensor, tokenizer: Tokenizer) -> dict[str, str]:
    """A few held-out lines and what the model makes of them."""
    torch.manual_seed(0)
    given = tokenizer.decode([token for token in text[:_PROMPT].tolist() if token != tokenizer.eos_id])
    given = given.partition("\n")[2] or given  # from the start of a line
    prompt = torch.from_numpy(tokenizer.encode(given).astype(np.int64))[None].to(model.device)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "min_new_tokens": _SAMPLE}
    out = _generate(model, prompt, _SAMPLE, **options)
    return {"prompt": given, "text": tokenizer.decode(out[0, prompt.shape[1] :].tolist())}


def _generate(model: Any, prompt: Tensor, count: int, **options: Any) -> Tensor:
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, **options)


def _binned(loss: Tensor) -> tuple[list[float], list[float]]:
    """Means over stretches of positions that grow in proportion, two an octave, from the ninth token on."""
    positions = torch.arange(1, len(loss) + 1, dtype=torch.float64)
    bins = (2 * (positions / _FIRST).log2()).floor()
    kept = bins.unique()[bins.unique() >= 0]
    middle = [float(positions[bins == one].log().mean().exp()) for one in kept]
    return middle, [float(loss[bins == one].mean()) for one in kept]
