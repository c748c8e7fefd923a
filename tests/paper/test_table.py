"""docs/paper.md cannot drift: it is what the code, the tests and docs/paper.toml make it."""

import pytest

from paper import table


def test_statements_code_and_tests_agree() -> None:
    assert table.problems() == []


def test_the_committed_table_is_the_generated_one() -> None:
    assert table.TABLE.read_text() == table.render(), "run `make paper`"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("the delta rule (Eq. 65).", ["Eq. 65"]),
        ("Eq. 64-66, 88\n    and 90 with two layers", ["Eq. 64", "Eq. 65", "Eq. 66", "Eq. 88", "Eq. 90"]),
        ("Definitions 2-3; Algorithm 1", ["Definition 2", "Definition 3", "Algorithm 1"]),
        ("Sec. 8.2, chunk 16", []),
    ],
)
def test_citations(text: str, names: list[str]) -> None:
    assert table.cited(text) == names


def test_a_gap_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its tests every computed statement is reported; so is a citation of what the paper does not have."""
    monkeypatch.setattr(table, "tests", lambda: [])
    monkeypatch.setattr(table, "functions", lambda: [table.Place(table.TABLE, "memory.dgd", "see Eq. 122")])
    found = table.problems()
    assert any(problem.startswith("Eq. 57 can be computed, but no test") for problem in found)
    assert any("cites Eq. 122, which the paper does not have" in problem for problem in found)
