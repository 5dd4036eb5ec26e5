from .build import apply_merge as apply_merge
from .build import build_model as build_model
from .named import named_model as named_model
from .settings import MergeSettings as MergeSettings
from .settings import ModelSettings as ModelSettings
