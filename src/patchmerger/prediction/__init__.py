"""Predict the classes of images, or give their features: one image, a folder, or a share of millions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
