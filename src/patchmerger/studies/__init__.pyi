from .acceleration_study import accelerate_study as accelerate_study
from .comparison import compare as compare
from .merger_sweep import sweep as sweep
from .transfer_study import transfer as transfer
