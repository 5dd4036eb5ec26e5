from .conversion import convert as convert
from .loading import load as load
from .saved_config import SavedConfig as SavedConfig
from .saved_config import describe as describe
from .saved_mergers import SavedMerger as SavedMerger
from .saving import save as save
from .uploading import push_to_hub as push_to_hub
