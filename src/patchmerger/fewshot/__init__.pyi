from .probe import few_shot as few_shot
from .result import FewShot as FewShot
from .result import KShot as KShot
