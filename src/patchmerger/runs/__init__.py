"""The folder of a run, what several processes share of it, where it ran, and statistics of its results."""
