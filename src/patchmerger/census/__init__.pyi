from .census import Census as Census
from .census import Finding as Finding
from .census import read_census as read_census
from .census import shipped_census as shipped_census
from .check import check_host as check_host
from .survey import take_census as take_census
