"""The census: which architectures of timm, transformers and torchvision take a merger."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
