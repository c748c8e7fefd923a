"""Optimizers as memories of gradients (Nested Learning, Sec. 4): each a full torch.optim.Optimizer."""

from nestling.optim.adamuon import AdaMuon
from nestling.optim.associative import AssociativeMomentum
from nestling.optim.base import MatrixOptimizer
from nestling.optim.delta import DeltaMomentum
from nestling.optim.dgd import DGD
from nestling.optim.dmgd import DMGD
from nestling.optim.ggd import GGD, GM
from nestling.optim.gradients import Whitening
from nestling.optim.groups import ParamGroups, param_groups
from nestling.optim.layerwise import layer_groups
from nestling.optim.m3 import M3
from nestling.optim.multifrequency import MultiFrequency
from nestling.optim.muon import Muon

__all__ = [
    "DGD",
    "DMGD",
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
    "Whitening",
    "layer_groups",
    "param_groups",
]
