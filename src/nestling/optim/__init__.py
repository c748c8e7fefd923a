"""Optimizers as memories of gradients (Nested Learning, Sec. 4): each a full torch.optim.Optimizer."""

from nestling.optim.adamuon import AdaMuon
from nestling.optim.base import MatrixOptimizer
from nestling.optim.delta import DeltaMomentum
from nestling.optim.groups import ParamGroups, param_groups
from nestling.optim.m3 import M3
from nestling.optim.multifrequency import MultiFrequency
from nestling.optim.muon import Muon

__all__ = ["M3", "AdaMuon", "DeltaMomentum", "MatrixOptimizer", "MultiFrequency", "Muon", "ParamGroups", "param_groups"]
