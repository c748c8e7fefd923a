"""Scores of continual learning: against loops over their definitions, and hand-made cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.continual.scores import Absence, Scores, retained_share
from nestling.errors import InputError

ACCURACY = [[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.85, 0.7]]
"""Three experiences, one a column; column 1 improves after it was learned."""

LOSS = [[3.0, 3.0, 3.0], [2.0, 2.8, 2.9], [2.5, 1.0, 2.7], [2.7, 1.4, 1.5], [1.9, 1.6, 1.8]]
"""Columns python, cpp, english; order python, cpp, english, python."""
RETURN = (0, 1, 2, 0)


def test_accuracies_by_hand():
    scores = Scores(ACCURACY)
    assert scores.average() == pytest.approx((0.5 + 0.85 + 0.7) / 3)
    assert scores.average_incremental() == pytest.approx((0.9 + 0.7 + (0.5 + 0.85 + 0.7) / 3) / 3)
    assert scores.backward_transfer() == pytest.approx(((0.5 - 0.9) + (0.85 - 0.8)) / 2)
    assert scores.forgetting_first_minus_last() == pytest.approx(0.175)
    assert scores.forgetting_max_minus_last() == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)
    assert scores.forward_transfer([0.1, 0.15, 0.05]) == pytest.approx(((0.2 - 0.15) + (0.3 - 0.05)) / 2)
    assert scores.learning_gain() == pytest.approx((0.8, 0.6, 0.4))


def test_maximum_counts_rows_before_the_visit_but_not_the_untrained_one():
    R = [[0.99, 0.99], [0.9, 0.8], [0.5, 0.7]]
    assert Scores(R).forgetting_max_minus_last() == pytest.approx(0.4)
    R = [[0.0, 0.0, 0.0], [0.9, 0.9, 0.0], [0.9, 0.7, 0.0], [0.9, 0.6, 0.8]]
    assert Scores(R).forgetting_max_minus_last() == pytest.approx((0 + 0.3) / 2)
    assert Scores(R).forgetting_first_minus_last() == pytest.approx((0 + 0.1) / 2)


def test_losses_of_a_domain_that_returns():
    scores = Scores(LOSS, RETURN, "lower")
    assert scores.absences == (Absence(0, 1, 3), Absence(1, 2, 4), Absence(2, 3, 4))
    assert scores.average() == pytest.approx((1.9 + 1.6 + 1.8) / 3)
    assert scores.average_incremental() == pytest.approx((2.0 + (2.5 + 1.0) / 2 + (2.7 + 1.4 + 1.5) / 3 + 5.3 / 3) / 4)
    assert scores.forgetting_first_minus_last() == pytest.approx((0.7 + 0.6 + 0.3) / 3)
    assert scores.backward_transfer() == pytest.approx(-(0.7 + 0.6 + 0.3) / 3)
    assert scores.forgetting_max_minus_last() == pytest.approx((0.7 + 0.6 + 0.3) / 3)
    assert scores.forward_transfer([3.0, 3.1, 3.0]) == pytest.approx((0.3 + 0.3) / 2)
    assert scores.learning_gain() == pytest.approx((1.0, 1.8, 1.2, 0.8))


def test_a_domain_known_before_the_stream_can_be_forgotten():
    scores = Scores([[1.0, 3.0], [1.6, 2.0]], [1], "lower", known=[0])
    assert scores.absences == (Absence(0, 0, 1),)
    assert scores.forgetting_first_minus_last() == pytest.approx(0.6)
    assert scores.forgetting_max_minus_last() == pytest.approx(0.6)
    assert scores.average_incremental() == pytest.approx(1.8)
    returning = Scores([[1.0, 3.0], [1.6, 2.0], [1.1, 2.5]], [1, 0], "lower", known=[0])
    assert returning.absences == (Absence(0, 0, 1), Absence(1, 1, 2))


def test_two_visits_in_a_row_leave_no_absence():
    assert Scores([[0.0], [0.5], [0.4]], [0, 0]).absences == ()


def test_scores_over_nothing_are_nan_and_not_in_the_summary():
    scores = Scores([[0.0, 0.1], [0.8, 0.2]], [0])
    for score in (scores.backward_transfer(), scores.forgetting_max_minus_last(), scores.forward_transfer([0, 0])):
        assert math.isnan(score)
    assert set(scores.summary([0, 0])) == {"average", "average_incremental", "learning_gain"}


def test_summary_holds_every_score():
    scores = Scores(LOSS, RETURN, "lower")
    found = scores.summary([3, 3, 3])
    assert found.pop("learning_gain") == pytest.approx(1.2)
    assert found.pop("forward_transfer") == scores.forward_transfer([3, 3, 3])
    assert found == {name: getattr(scores, name)() for name in found}
    assert len(found) == 5


def naive(R, order, sign):
    """The definitions in loops: backward transfer, forgetting by maximum, forward transfer against zero, gains."""
    T, transfers, maxima, forward, gains = len(order), [], [], [], []
    for i in range(1, T + 1):
        j = order[i - 1]
        gains.append(sign * (R[i][j] - R[i - 1][j]))
        if i > 1 and j not in order[: i - 1]:
            forward.append(sign * R[i - 1][j])
        b = i
        while b < T and order[b] != j:
            b += 1
        if b > i:
            transfers.append(sign * (R[b][j] - R[i][j]))
            maxima.append(max(sign * R[row][j] for row in range(1, b)) - sign * R[b][j])
    return [sum(values) / len(values) if values else math.nan for values in (transfers, maxima, forward)], gains


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=8), st.booleans(), st.integers(0, 999))
def test_equal_to_loops_over_the_definitions(columns, order, higher, seed):
    order = [column % columns for column in order]
    R = np.random.default_rng(seed).normal(size=(len(order) + 1, columns))
    scores = Scores(R, order, "higher" if higher else "lower")
    expected, gains = naive(R.tolist(), order, 1 if higher else -1)
    found = [scores.backward_transfer(), scores.forgetting_max_minus_last(), scores.forward_transfer(np.zeros(columns))]
    assert found == pytest.approx(expected, nan_ok=True)
    assert scores.learning_gain() == pytest.approx(gains)
    if not math.isnan(expected[0]):
        assert found[1] >= -found[0] - 1e-12


def test_loss_is_accuracy_turned_round():
    R = np.array(LOSS)
    one, other = Scores(R, RETURN, "lower").summary(R[0]), Scores(-R, RETURN).summary(-R[0])
    for name, value in one.items():
        assert value == pytest.approx(-other[name] if name.startswith("average") else other[name])


def test_shares_of_a_reference():
    assert retained_share(0.9, 1.2) == pytest.approx(0.75)
    assert math.isnan(retained_share(0.1, 0.0))
    assert math.isnan(retained_share(0.1, -0.2))


@pytest.mark.parametrize(
    ("R", "order", "better", "said"),
    [
        ([1.0, 2.0], None, "higher", "R: its shape"),
        (ACCURACY, (0, 1), "higher", "R: it has 4 rows for 2 experiences"),
        ([[1.0], [1.0, 2.0]], None, "higher", "R: it is no matrix"),
        ([[1.0]], (), "higher", "R: it has 1 rows for 0 experiences"),
        (ACCURACY, (0, 1, 3), "higher", "column 3 is not in R"),
        (ACCURACY, (0, 1, -1), "higher", "column -1 is not in R"),
        ([[0.0], [math.nan]], None, "higher", "not finite"),
        (ACCURACY, None, "best", "better: 'best' is unknown"),
    ],
)
def test_bad_input(R, order, better, said):
    with pytest.raises(InputError, match=said):
        Scores(R, order, better)


def test_a_baseline_of_another_size():
    with pytest.raises(InputError, match=r"baseline: its shape is \(2,\)"):
        Scores(ACCURACY).forward_transfer([0.1, 0.1])
