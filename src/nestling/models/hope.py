"""Hope: self-modifying Titans, then the Continuum Memory System (Nested Learning, Sec. 8.3, Eq. 94-97)."""

from dataclasses import fields, replace

from torch import nn

from nestling.errors import InputError
from nestling.layers.cms import CMSLevel, ContinuumMemory, check_levels
from nestling.layers.titans import SelfModifyingTitans
from nestling.memory.dgd import DGD
from nestling.memory.gd import GD
from nestling.memory.memory import Memory, Momentum
from nestling.memory.objective import L2, DotProduct, Objective
from nestling.memory.retention import Decay
from nestling.memory.rule import Frozen, Rule
from nestling.memory.selfmod import SelfModifying
from nestling.models.config import NestlingConfig
from nestling.models.registry import choice, register

READOUT_RULES = ("dgd-direct", "dgd-surprise", "gd", "frozen")
HIDDEN_RULES = ("gd", "dgd-surprise", "frozen")
OBJECTIVES: dict[str, Objective] = {"l2": L2(), "dot": DotProduct()}


class ContinuumConfig(NestlingConfig):
    """What Hope and Hope-Attention share: the channel mixer.

    levels: blocks of the Continuum Memory System in the order in which they are applied, each a dict of CMSLevel's
        fields (signal, chunk_size, rule, period, form, learner); None: one block that only the outer optimizer moves.
    cms_variant: "sequential", "nested" or "independent".
    """

    levels: list | None = None
    cms_variant: str = "sequential"

    def check(self) -> None:
        """Besides the shared fields, the levels must fit together."""
        super().check()
        for level in self.levels or []:
            for name in level:
                choice("field of a level", name, tuple(field.name for field in fields(CMSLevel)))
        check_levels(self.intermediate_size, self._levels(), self.cms_variant)

    def _levels(self) -> list[CMSLevel]:
        return [CMSLevel(**level) for level in self.levels or [{}]]

    def channel(self, layer: int) -> nn.Module:
        """The Continuum Memory System."""
        return ContinuumMemory(self.hidden_size, self.intermediate_size, self._levels(), self.cms_variant)


@register("hope")
class HopeConfig(ContinuumConfig):
    """Self-modifying Titans and the Continuum Memory System.

    chunk_size: tokens between boundaries of the content memory; projection_chunk_size: of the others, a multiple.
    memory_hidden_size: hidden width of each memory; None: the width of a head.
    memory_updated: memories that change in context, of v, k, eta, alpha, mem and, with adaptive_query, q.
    memory_rule: of the read-out layer W1, "dgd-direct", "dgd-surprise", "gd" or "frozen"; memory_hidden_rule: of W2,
        "gd", "dgd-surprise" or "frozen". Gradient rules average over the chunk.
    memory_step: of a DGD read-out, "implicit", which is stable at every size, or "explicit", in (0, 2), which above 1
        turns the sign of what is stored under a key: better for tasks that track a state.
    memory_objective: "l2", or "dot", with which "gd" adds up all that is written under a key and erases nothing: better
        for tasks that count.
    memory_momentum, memory_retention: have them or not. memory_anchor: what retention pulls to, "initial" or "zero".
    memory_read: "causal", "previous" or "boundary". memory_own_targets: False: all memories learn v_t (Eq. 79-82).
    conv_identity: start the short convolutions near the identity: better for tasks that store and recall single tokens;
        on text, random taps learn faster.
    kernel: who computes a chunk, "auto", "fused" or "algebra".
    """

    chunk_size: int = 64
    projection_chunk_size: int = 64
    memory_hidden_size: int | None = None
    memory_updated: list | tuple = ("v", "k", "eta", "alpha", "mem")
    memory_rule: str = "dgd-direct"
    memory_hidden_rule: str = "gd"
    memory_step: str = "implicit"
    memory_objective: str = "l2"
    memory_momentum: bool = False
    memory_retention: bool = True
    memory_anchor: str = "initial"
    memory_read: str = "causal"
    memory_own_targets: bool = True
    adaptive_query: bool = False
    conv_identity: bool = False
    kernel: str = "auto"

    def check(self) -> None:
        """Build the mixer's choices once, so that a mistake shows here."""
        super().check()
        choice("memory_rule", self.memory_rule, READOUT_RULES)
        choice("memory_hidden_rule", self.memory_hidden_rule, HIDDEN_RULES)
        choice("memory_step", self.memory_step, ("implicit", "explicit"))
        choice("memory_objective", self.memory_objective, OBJECTIVES)
        choice("memory_anchor", self.memory_anchor, ("initial", "zero"))
        if self.chunk_size < 1:
            raise InputError(f"chunk_size={self.chunk_size} must be at least 1: give a positive number.")
        if self.memory_step == "explicit" and "dgd" not in self.memory_rule:
            raise InputError(
                f"memory_step='explicit' is a step of DGD, which memory_rule='{self.memory_rule}' is not: "
                "use memory_rule='dgd-direct' or 'dgd-surprise', or memory_step='implicit'."
            )
        self._memory()

    def _memory(self) -> SelfModifying:
        mean = GD(step="implicit", scale=1 / self.chunk_size, bounded=True)
        rules: dict[str, Rule] = {"dgd-direct": DGD(), "dgd-surprise": DGD("surprise"), "gd": mean, "frozen": Frozen()}
        readout = rules[self.memory_rule]
        if isinstance(readout, DGD):
            readout = replace(readout, step=self.memory_step)  # pyright: ignore[reportArgumentType]
        elif readout is mean and self.memory_objective == "dot":  # whose gradients do not depend on each other
            readout = GD(step="implicit")
        memory = Memory(
            objective=OBJECTIVES[self.memory_objective],
            rules=(readout, rules[self.memory_hidden_rule]),
            retention=Decay(self.memory_anchor),  # pyright: ignore[reportArgumentType]
            momentum=Momentum() if self.memory_momentum else None,
            read=self.memory_read,  # pyright: ignore[reportArgumentType]
            chunk_size=self.chunk_size,
        )
        updated, own = tuple(self.memory_updated), self.memory_own_targets
        return SelfModifying(memory, self.projection_chunk_size, updated, self.adaptive_query, own)

    def mixer(self, layer: int) -> nn.Module:
        """Self-modifying Titans."""
        hidden = self.memory_hidden_size or self.hidden_size // self.num_attention_heads
        switches = self.kernel, self.memory_retention, self.conv_identity
        return SelfModifyingTitans(self.hidden_size, self.num_attention_heads, hidden, self._memory(), *switches)
