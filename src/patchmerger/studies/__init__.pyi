from .acceleration_study import accelerate_study as accelerate_study
from .comparison import compare as compare
from .merger_sweep import sweep as sweep
from .settings import Downstream as Downstream
from .settings import FineTuning as FineTuning
from .settings import Grid as Grid
from .settings import Variant as Variant
from .transfer_study import transfer as transfer
