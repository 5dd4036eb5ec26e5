from .accelerating import accelerate as accelerate
from .accelerating import find_teacher as find_teacher
from .distillation import distill as distill
from .query_initialisation import calibrate as calibrate
from .settings import PlacementSettings as PlacementSettings
from .settings import QueryInitSettings as QueryInitSettings
from .settings import RecoverySettings as RecoverySettings
