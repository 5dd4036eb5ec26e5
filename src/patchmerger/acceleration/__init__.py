"""The acceleration room: a trained ViT in, a faster one as accurate out.

``accelerating`` is the whole; ``run`` goes through its steps and keeps what is done. A step has a module each:
``placing`` (where), ``calibration`` (start), ``distillation`` (recover), ``proof`` (prove).
"""
