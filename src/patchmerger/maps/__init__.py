"""Merge maps: which patches of an image went into each token, read from a model, and what they amount to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
