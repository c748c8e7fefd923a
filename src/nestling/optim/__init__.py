"""Optimizers as memories of gradients (Nested Learning, Sec. 4): each a full torch.optim.Optimizer."""

from nestling.optim.adamuon import AdaMuon
from nestling.optim.associative import AssociativeMomentum
from nestling.optim.base import MatrixOptimizer
from nestling.optim.delta import DeltaMomentum
from nestling.optim.dgd import DGD
from nestling.optim.ggd import GGD, GM
from nestling.optim.groups import ParamGroups, param_groups
from nestling.optim.m3 import M3
from nestling.optim.multifrequency import MultiFrequency
from nestling.optim.muon import Muon

__all__ = [
    "DGD",
    "GGD",
    "GM",
    "M3",
    "AdaMuon",
    "AssociativeMomentum",
    "DeltaMomentum",
    "MatrixOptimizer",
    "MultiFrequency",
    "Muon",
    "ParamGroups",
    "param_groups",
]
