"""Save and load models with their mergers: a folder with ``model.safetensors`` and a ``config.json``.

The folder is the one that the model's own library writes and reads (timm, transformers; torchvision has none), with
the mergers under one more key, ``"patchmerger"``. Nothing is ever pickled.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
