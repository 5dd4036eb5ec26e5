"""Other ways to get from N tokens to M, behind the same ``insert``: for fair comparison."""

from patchmerger.reducers.average_pool import AveragePool

__all__ = ["AveragePool"]
