from .outcomes import BadImage as BadImage
from .outcomes import PredictedClass as PredictedClass
from .outcomes import Prediction as Prediction
from .outcomes import Predictions as Predictions
from .pictures import Pictures as Pictures
from .pictures import find_pictures as find_pictures
from .predictor import Predictor as Predictor
from .predictor import predict as predict
