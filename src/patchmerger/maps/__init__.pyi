from .reading import MergerMaps as MergerMaps
from .reading import merge_maps as merge_maps
from .reading import read_maps as read_maps
