"""The paper is tested like the mathematics: in float64, from a fixed seed."""

from memory.conftest import double as double
