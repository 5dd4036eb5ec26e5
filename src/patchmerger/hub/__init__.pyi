from .conversion import convert as convert
from .saved_changes import SavedMerger as SavedMerger
from .saved_model import SavedConfig as SavedConfig
from .saved_model import describe as describe
from .saved_model import load as load
from .saving import save as save
from .token_reduction import load_token_reduction as load_token_reduction
from .uploading import push_to_hub as push_to_hub
