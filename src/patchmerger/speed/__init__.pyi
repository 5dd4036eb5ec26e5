from .benchmark import measure as measure
from .compiling import compiled as compiled
from .suite import bench as bench
