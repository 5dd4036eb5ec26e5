from .check import check_host as check_host
from .survey import survey as survey
