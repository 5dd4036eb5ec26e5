from .average_pool import AveragePool as AveragePool
