"""Ragged rows: every helper against a loop over the sequences, fast paths included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.layers.stream import join, split, tail


def counts(*values):
    return torch.tensor(values, dtype=torch.int64)


def joined_by_loop(rows, count, x, lengths):
    parts = [torch.cat((rows[b, :c], x[b, :n])) for b, (c, n) in enumerate(zip(count, lengths, strict=True))]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_join_equals_a_loop(data):
    batch, pending, new = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 4)), data.draw(st.integers(1, 5))
    draw = lambda low, high: counts(*(data.draw(st.integers(low, high)) for _ in range(batch)))  # noqa: E731
    count, lengths = draw(0, pending), draw(1, new)
    rows, x = torch.randn(batch, pending, 2), torch.randn(batch, new, 2)
    joined, total = join(rows, count, x, lengths)
    assert torch.equal(total, count + lengths)
    assert torch.equal(joined, joined_by_loop(rows, count, x, lengths))


def test_join_with_nothing_pending_copies_nothing():
    x = torch.randn(2, 5, 3)
    joined, total = join(x.new_zeros(2, 0, 3), counts(0, 0), x)
    assert joined is x or joined.data_ptr() == x.data_ptr()
    assert total.tolist() == [5, 5]


@pytest.mark.parametrize("count", [counts(2, 2), counts(1, 3)])
def test_join_zeroes_what_is_not_real(count):
    rows, x = torch.full((2, 3, 1), torch.nan), torch.full((2, 4, 1), torch.nan)
    for b in range(2):
        rows[b, : count[b]] = 1
    x[0, :1], x[1, :4] = 2, 2
    joined, total = join(rows, count, x, counts(1, 4))
    assert torch.isfinite(joined).all()
    assert all((joined[b, total[b] :] == 0).all() for b in range(2))


@pytest.mark.parametrize("count", [counts(0, 0), counts(2, 2), counts(0, 3)])
@pytest.mark.parametrize("lengths", [None, counts(2, 4), counts(1, 1)])
def test_join_is_differentiable(count, lengths):
    rows, x = (torch.randn(2, n, 2, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    torch.autograd.gradcheck(lambda r, x: join(r, count, x, lengths)[0].sum(-1).sin(), (rows, x))


@pytest.mark.parametrize("start", [counts(0, 0), counts(3, 3), counts(1, 4), counts(5, 0)])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_split_equals_slices(start, length):
    x = torch.randn(2, 5, 3)
    out = split(x, start, length)
    assert out.shape == (2, length, 3)
    for b in range(2):
        part = x[b, start[b] : start[b] + length]
        assert torch.equal(out[b, : len(part)], part)
        assert (out[b, len(part) :] == 0).all()


@pytest.mark.parametrize(
    ("start", "total"),
    [(counts(3, 3), counts(5, 5)), (counts(0, 0), counts(5, 5)), (counts(3, 3), counts(5, 4)),
     (counts(0, 4), counts(2, 5)), (counts(5, 2), counts(5, 2))],
)  # fmt: skip
def test_tail_equals_slices(start, total):
    x = torch.randn(2, 5, 3)
    rows, count = tail(x, start, total)
    assert torch.equal(count, total - start)
    assert rows.shape[1] == count.max()
    for b in range(2):
        assert torch.equal(rows[b, : count[b]], x[b, start[b] : total[b]])
        assert (rows[b, count[b] :] == 0).all()
    assert rows.untyped_storage().nbytes() <= max(rows.nbytes, x.nbytes if rows.shape == x.shape else rows.nbytes)
