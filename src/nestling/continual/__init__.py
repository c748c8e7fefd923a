"""Models that keep learning: levels on a stream, and what remembers and forgets."""
