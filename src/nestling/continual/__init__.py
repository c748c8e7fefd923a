"""Models that keep learning: levels of memory on a stream of text, scenarios and their scores."""
