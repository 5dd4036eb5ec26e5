"""Make Vision Transformers about twice as fast by learning to merge their tokens (arXiv 2202.12015).

Public names are imported on first use, so that ``import patchmerger`` alone costs next to nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
