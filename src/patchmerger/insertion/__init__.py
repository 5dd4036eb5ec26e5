"""Mergers put between the blocks of a model, listed, and taken out again."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
