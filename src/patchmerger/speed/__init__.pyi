from .benchmark import measure as measure
from .suite import bench as bench
