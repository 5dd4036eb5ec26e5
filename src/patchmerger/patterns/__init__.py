"""How methods reduce tokens, compared: which patches they keep or put together, and what becomes of the features.

``reading.py`` runs a model over images, ``similarity.py`` holds the measures, ``comparison.py`` compares models, and
``ranks.py`` relates how alike they are to how accurate they are.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
