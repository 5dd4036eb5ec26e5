from .build import apply_merge as apply_merge
from .build import build_model as build_model
from .finding import FoundModel as FoundModel
from .finding import find_model as find_model
from .settings import MergeSettings as MergeSettings
from .settings import ModelSettings as ModelSettings
