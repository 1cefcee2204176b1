from config.learned16 import *

input_layer = "fixed"
