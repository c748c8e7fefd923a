"""Nested Learning in PyTorch: associative memories, the Continuum Memory System and Hope.

Submodules and names are imported on first use, so `import nestling` stays light. The models register themselves with
transformers' Auto classes: now if transformers is already imported, else when `nestling.models` is first used.
"""

import importlib
import sys

_MODULES = ("continual", "data", "evaluate", "layers", "levels", "memory", "models", "optim", "recipes", "train")
_NAMES = {
    "Learner": "nestling.continual.learner",
    "Level": "nestling.continual.level",
    "load_state": "nestling.models.state",
    "save_state": "nestling.models.state",
    "stack_levels": "nestling.continual.stacking",
}

__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"nestling.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'nestling' has no attribute '{name}'")


def __dir__():
    return sorted(["__version__", *_MODULES, *_NAMES])


if "transformers" in sys.modules:
    importlib.import_module("nestling.models")
