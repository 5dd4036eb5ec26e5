"""Which models can take a merger: for each host library, where its blocks and tokens are."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
