from .host import Host as Host
from .host import RelativeBias as RelativeBias
from .host import UnsupportedModelError as UnsupportedModelError
from .registry import block_names as block_names
from .registry import find_host as find_host
from .registry import register_host as register_host
