"""Tokens placed where they matter instead of cut out of a grid (SPoT, arXiv 2507.01654), in front of any merger."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
