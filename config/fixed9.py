from config.learned9 import *

input_layer = "fixed"
