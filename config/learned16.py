from config.learned32 import *

n_layer = 16  # Bochkov, Table 4
