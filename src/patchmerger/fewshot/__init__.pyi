from .features import extract_features as extract_features
from .features import pre_logits as pre_logits
from .probe import few_shot as few_shot
from .probe import few_shot_images as few_shot_images
from .results import FewShot as FewShot
from .results import KShot as KShot
from .settings import FewShotSettings as FewShotSettings
