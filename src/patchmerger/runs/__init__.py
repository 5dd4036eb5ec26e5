"""The folder of a run, what several processes share of it, where it ran, and statistics of its results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
