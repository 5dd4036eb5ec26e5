from .accelerating import accelerate as accelerate
from .calibration import calibrate as calibrate
from .distillation import distill as distill
from .settings import RecoverySettings as RecoverySettings
