from .probe import few_shot as few_shot
from .probe import few_shot_images as few_shot_images
from .result import FewShot as FewShot
from .result import KShot as KShot
