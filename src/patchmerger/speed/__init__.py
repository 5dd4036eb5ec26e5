"""What a merger gains in time and memory: measured, beside what FLOPs and a roofline predict."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
