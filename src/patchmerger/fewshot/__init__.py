"""The few-shot probe: a linear classifier on frozen features, fitted to k images a class."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
