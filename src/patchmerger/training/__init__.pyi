from .evaluation import evaluate as evaluate
from .fitting import fit as fit
from .optimizer import parameter_groups as parameter_groups
from .settings import Recipe as Recipe
from .settings import TrainingSettings as TrainingSettings
