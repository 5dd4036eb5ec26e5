"""A trained model as a file for another runtime: ONNX, OpenVINO, torch.export; written, checked, opened again."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
