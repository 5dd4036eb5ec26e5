from .average_pool import AveragePool as AveragePool
from .making import make_reducer as make_reducer
from .names import METHODS as METHODS
from .names import Method as Method
from .random_drop import RandomDrop as RandomDrop
from .reducer import Reducer as Reducer
