from .counting import PartCost as PartCost
from .model_cost import Cost as Cost
from .model_cost import cost as cost
from .placements import Placement as Placement
