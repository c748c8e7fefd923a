r"""Scores of continual learning from a matrix R: what was learned, what was forgotten, what helped.

`R[i, j]` is measured on column j (a domain, or an experience's test set) after i experiences of the stream; row 0 is
before any of them. Experience i (from 1) trains on column `order[i - 1]`. Below, `G = R` where higher is better
(accuracy), `G = -R` where lower is (loss): forgetting and gain are positive when something was forgotten or gained,
whatever the measure, and have its unit.

A column may be trained on several times (python, cpp, english, python). Each visit is followed by an absence: from
the row `a` right after the visit to the row `b` right before the next visit of that column, or the last row. Absences
without an experience in between (`a = b`) are left out. A column that was learned before the stream (`known`) starts
with an absence at `a = 0`. Where every column is visited once, absences are the pairs (i, last) of the sources:

- Lopez-Paz & Ranzato 2017, arXiv 1706.08840: average, backward and forward transfer
- Chaudhry et al. 2018, arXiv 1801.10112: forgetting as maximum minus last
- Rebuffi et al. 2017, arXiv 1611.07725: average incremental accuracy
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from nestling.errors import InputError

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Absence:
    """A column that was left: rows `start` (right after its visit) to `end` (before its next visit, or the last)."""

    column: int
    start: int
    end: int


class Scores:
    """Scores of one run over a stream of T experiences, with D columns.

    Args:
        R: `(T + 1, D)` accuracies or losses, finite; see above.
        order: T columns, that of each experience; by default 0 to D - 1, one experience a column.
        better: `higher` for accuracy, `lower` for loss.
        known: columns that were learned before the stream.

    Scores over nothing (forgetting after one experience) are nan. Raises InputError where the arguments do not fit.
    """

    def __init__(
        self, R: ArrayLike, order: Sequence[int] | None = None, better: Better = "higher", known: Sequence[int] = ()
    ):
        try:
            self.R = np.asarray(R, np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"R: it is no matrix ({error}); give rows of numbers of one length.") from error
        if self.R.ndim != 2:
            raise InputError(f"R: its shape is {self.R.shape}; give experiences + 1 rows and one column a domain.")
        self.order = tuple(range(self.R.shape[1])) if order is None else tuple(order)
        self.known = tuple(known)
        self._check(better)
        self._sign = 1 if better == "higher" else -1
        self._good = self._sign * self.R

    def _check(self, better: str) -> None:
        rows, columns = self.R.shape
        if better not in get_args(Better):
            raise InputError(f"better: '{better}' is unknown; give higher or lower.")
        if rows != len(self.order) + 1 or rows < 2:
            raise InputError(
                f"R: it has {rows} rows for {len(self.order)} experiences; "
                "give one before the first and one after each, of at least one experience."
            )
        if wrong := [column for column in (*self.order, *self.known) if not 0 <= column < columns]:
            raise InputError(f"order: column {wrong[0]} is not in R, which has {columns}; give 0 to {columns - 1}.")
        if not np.isfinite(self.R).all():
            raise InputError("R: a value is not finite; measure every column after every experience.")

    @property
    def absences(self) -> tuple[Absence, ...]:
        """Every absence with at least one experience in it, by the row it starts at."""
        last, found = len(self.order), []
        visits = [(0, column) for column in dict.fromkeys(self.known)] + list(enumerate(self.order, 1))
        for start, column in visits:
            end = next((i for i in range(start, last) if self.order[i] == column), last)
            if end > start:
                found.append(Absence(column, start, end))
        return tuple(found)

    def average(self) -> float:
        r"""Mean over all columns after the last experience, $\frac1D \sum_j R_{T,j}$, in the unit of R."""
        return float(self.R[-1].mean())

    def average_incremental(self) -> float:
        r"""Mean over the stages i = 1 ... T of the mean of `R[i]` over the columns learned by then (or known)."""
        stages = range(1, len(self.order) + 1)
        return float(np.mean([self.R[i, sorted({*self.known, *self.order[:i]})].mean() for i in stages]))

    def backward_transfer(self) -> float:
        r"""Mean over absences of $G_{b,j} - G_{a,j}$: negative where later experiences did harm.

        Where every column is visited once, $\frac{1}{T-1} \sum_{j<T} G_{T,j} - G_{j,j}$ (Lopez-Paz & Ranzato 2017).
        """
        return _mean(
            [self._good[gone.end, gone.column] - self._good[gone.start, gone.column] for gone in self.absences]
        )

    def forgetting_first_minus_last(self) -> float:
        r"""Mean over absences of $G_{a,j} - G_{b,j}$: right after learning, minus at the end; -backward transfer."""
        return -self.backward_transfer()

    def forgetting_max_minus_last(self) -> float:
        r"""Mean over absences of $\max_{1 \le l < b} G_{l,j} - G_{b,j}$: the best so far, minus at the end.

        The maximum is over all rows before b, as in Chaudhry et al. 2018, also those before the column's visit; row 0
        counts for columns known before the stream only.
        """
        best = [self._good[int(gone.column not in self.known) : gone.end, gone.column].max() for gone in self.absences]
        ends = [self._good[gone.end, gone.column] for gone in self.absences]
        return _mean([high - end for high, end in zip(best, ends, strict=True)])

    def forward_transfer(self, baseline: ArrayLike) -> float:
        r"""Mean over columns first visited by experience i > 1 of $G_{i-1,j} - g_j$ (Lopez-Paz & Ranzato 2017).

        `baseline (D,)`: the measure of a model that has learned nothing yet, in the unit of R ($g$ is it or minus it).
        """
        base = self._sign * np.asarray(baseline, np.float64)
        if base.shape != (self.R.shape[1],):
            raise InputError(f"baseline: its shape is {base.shape}; give one value for each of R's columns.")
        seen = {*self.known, self.order[0]}
        found = []
        for i, column in enumerate(self.order[1:], 1):
            if column not in seen:
                found.append(self._good[i, column] - base[column])
            seen.add(column)
        return _mean(found)

    def learning_gain(self) -> tuple[float, ...]:
        r"""What each experience brought on its own column: $G_{i,j} - G_{i-1,j}$; of a loss, before minus after."""
        return tuple(float(self._good[i, j] - self._good[i - 1, j]) for i, j in enumerate(self.order, 1))

    def summary(self, baseline: ArrayLike | None = None) -> dict[str, float]:
        """All scores by name, without those over nothing; `learning_gain` is the mean over experiences."""
        found = {
            "average": self.average(),
            "average_incremental": self.average_incremental(),
            "backward_transfer": self.backward_transfer(),
            "forgetting_first_minus_last": self.forgetting_first_minus_last(),
            "forgetting_max_minus_last": self.forgetting_max_minus_last(),
            "learning_gain": _mean(self.learning_gain()),
        }
        if baseline is not None:
            found["forward_transfer"] = self.forward_transfer(baseline)
        return {name: value for name, value in found.items() if not math.isnan(value)}


def retained_share(value: float, reference: float) -> float:
    """`value / reference`: the share of a reference's gain (or of its forgetting) that a learner has.

    nan where the reference is not positive: of no gain, and of no forgetting, there is no share.
    """
    return value / reference if reference > 0 else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
