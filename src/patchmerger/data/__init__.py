"""Images: sources read into splits, ordered, varied and batched for Lightning.

``load_images(DataSettings(...), seed=...)`` gives the images; ``ImageData`` makes batches of them for a trainer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
