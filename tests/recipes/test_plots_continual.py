"""Drawings of continual learning say what was given."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from nestling.recipes import plots, plots_continual

LOSS = [[3.0, 3.0], [2.0, 2.8], [2.5, 1.0], [1.9, 1.25]]


@pytest.fixture
def drawing():
    figure, (axes,) = plots.panels(1)
    return figure, axes


def frames(axes):
    return [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]


@pytest.mark.parametrize(("better", "best"), [("lower", 1.0), ("higher", 3.0)])
def test_matrix_has_every_number_and_is_darkest_where_best(drawing, tmp_path, better, best):
    figure, axes = drawing
    plots_continual.matrix(axes, LOSS, ["python", "cpp", "python 2"], ["python", "cpp"], (0, 1, 0), better)
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for row in LOSS for value in row]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["python", "cpp"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "before",
        "after python",
        "after cpp",
        "after python 2",
    ]
    shades = np.asarray(axes.images[0].get_array())
    assert np.asarray(LOSS).flat[shades.argmax()] == best
    white = [float(text.get_text()) for text in axes.texts if text.get_color() == "white"]
    assert best in white
    assert frames(axes) == [pytest.approx((j - 0.48, i - 0.48)) for i, j in ((1, 0), (2, 1), (3, 0))]
    assert plots.save(figure, tmp_path / "R.svg").read_text().count("2.80") == 1


def test_a_matrix_of_one_value_draws(drawing, tmp_path):
    figure, axes = drawing
    plots_continual.matrix(axes, [[0.5], [0.5]], ["a"], ["a"])
    assert frames(axes) == []
    assert plots.save(figure, tmp_path / "R.svg").exists()


def test_over_time_has_means_ranges_and_experiences(drawing, tmp_path):
    figure, axes = drawing
    lines = {"python": [[3.0, 2.0, 2.5], [3.0, 1.0, 1.5]], "cpp": [[3.0, 2.8, 1.0]]}
    plots_continual.over_time(axes, [0, 100, 300], lines, [("python", 100), ("cpp", 200)], "bits per byte")
    python, cpp = axes.get_lines()
    assert list(python.get_xdata()) == [0, 100, 300]
    assert list(python.get_ydata()) == [3.0, 1.5, 2.0]
    assert list(cpp.get_ydata()) == [3.0, 2.8, 1.0]
    grounds = [(patch.get_x(), patch.get_width()) for patch in axes.patches if isinstance(patch, Rectangle)]
    assert grounds == [(0, 100), (100, 200)]
    colours = [patch.get_facecolor()[:3] for patch in axes.patches]
    assert len(set(colours)) == 2
    assert [(text.get_text(), text.get_position()[0]) for text in axes.texts] == [("python", 50), ("cpp", 200)]
    assert axes.get_ylabel() == "bits per byte"
    assert plots.save(figure, tmp_path / "time.svg").exists()
