"""Training on Lightning: one run from images to a saved model, resumed when interrupted."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
