"""Optimizers as memories of gradients (Nested Learning, Sec. 4): each a full torch.optim.Optimizer."""

from nestling.optim.base import MatrixOptimizer
from nestling.optim.muon import Muon

__all__ = ["MatrixOptimizer", "Muon"]
