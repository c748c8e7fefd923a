"""Models by name: registration with transformers, creation, loading.

A model is one configuration class in one file:

    @register("my-model")
    class MyModelConfig(NestlingConfig):
        chunk_size: int = 64

        def mixer(self, layer):
            return MyMixer(self.hidden_size, self.num_attention_heads, self.chunk_size)

and one line in `nestling.models`. Registration makes `MyModelModel` and `MyModelForCausalLM` beside it, and AutoConfig,
AutoModel and AutoModelForCausalLM know the model by the type "nestling-my-model" from then on.
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from nestling.data.tokenizer import load_tokenizer
from nestling.errors import InputError
from nestling.models.base import NestlingForCausalLM, NestlingModel
from nestling.models.config import INHERITED, NestlingConfig

PREFIX = "nestling-"
_CONFIGS: dict[str, type[NestlingConfig]] = {}


def register(name: str) -> Callable[[type[NestlingConfig]], type[NestlingConfig]]:
    """Class decorator: make a configuration a model called `name`."""

    def add(cls: type[NestlingConfig]) -> type[NestlingConfig]:
        cls.model_type = PREFIX + name
        cls = strict(cls)
        stem, home = cls.__name__.removesuffix("Config"), sys.modules[cls.__module__]
        shared = {"config_class": cls, "__module__": cls.__module__, "__doc__": cls.__doc__}
        base = type(f"{stem}Model", (NestlingModel,), shared)
        causal = type(f"{stem}ForCausalLM", (NestlingForCausalLM,), shared | {"base_class": base})
        for made in (base, causal):
            setattr(home, made.__name__, made)
        AutoConfig.register(cls.model_type, cls, exist_ok=True)
        AutoModel.register(cls, base, exist_ok=True)
        AutoModelForCausalLM.register(cls, causal, exist_ok=True)
        _CONFIGS[name] = cls
        return cls

    return add


def names() -> list[str]:
    """The names that `create` knows, in alphabetical order."""
    return sorted(_CONFIGS)


def choice(kind: str, value: str, allowed: Iterable[str]) -> None:
    """Raise InputError if `value` is none of `allowed`, naming the nearest."""
    allowed = list(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise InputError(f"{kind} '{value}' is unknown: choose one of {', '.join(allowed)}{hint}")


def configuration(name: str, **values) -> NestlingConfig:
    """The configuration of model `name` with these fields.

    Raises:
        InputError: an unknown name or field, a value of the wrong type, or fields that don't fit together.
    """
    choice("model", name, names())
    cls = _CONFIGS[name]
    for field in values:
        if field not in INHERITED:
            choice(f"{name} field", field, [known.name for known in fields(cls) if known.name not in INHERITED])
    try:
        return cls(**values)
    except StrictDataclassError as error:
        raise InputError(f"{name}: {' '.join(str(error).split())}; give a value of that type.") from None


def build(config: NestlingConfig) -> NestlingForCausalLM:
    """A new causal language model of this configuration, with fresh weights."""
    return AutoModelForCausalLM.from_config(config)


def load(path: str | os.PathLike, **options) -> Any:
    """Load a model that `save_pretrained` wrote; `options` are those of from_pretrained.

    Raises:
        InputError: no such folder, not one of our models, or a truncated file.
    """
    path = Path(path)
    choice(f"model in '{path}'", _kind(path).removeprefix(PREFIX), names())
    try:
        return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"model folder '{path}' has damaged or missing weights ({_line(error)}): restore it."
        ) from None


def load_any(folder: str | os.PathLike) -> tuple[Any, Any]:
    """A causal language model and its tokenizer: one of ours, also of a run folder, or one that transformers knows.

    Nothing is downloaded, no code of the folder is run, and weights are read from safetensors only.

    Raises:
        InputError: as `load`; or no tokenizer beside the model.
    """
    folder = Path(folder)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    if _kind(folder).startswith(PREFIX):
        return load(folder), load_tokenizer(folder)
    options = {"local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
        return model, AutoTokenizer.from_pretrained(folder, **options)
    except (SafetensorError, OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"model folder '{folder}' can't be used ({_line(error)}): it needs a causal language model in safetensors "
            "and its tokenizer."
        ) from None


def _kind(path: Path) -> str:
    """The model type that a folder's configuration names."""
    try:
        return str(json.loads((path / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"model folder '{path}' has no readable config.json: name what save_pretrained wrote."
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
