"""Every published method of getting from N tokens to M, behind the same ``insert``: one file a method.

``names.py`` lists them and makes one by its name, ``reducer.py`` says what a method is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
