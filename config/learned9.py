from config.learned32 import *

n_layer = 9  # Bochkov, Table 4
