from .build import MergeSettings as MergeSettings
from .build import ModelSettings as ModelSettings
from .build import build_model as build_model
from .named import named_model as named_model
