from .run_folder import RunFolder as RunFolder
from .statistics import PairedDifference as PairedDifference
from .statistics import mean_sd as mean_sd
from .statistics import over_images as over_images
from .statistics import over_seeds as over_seeds
