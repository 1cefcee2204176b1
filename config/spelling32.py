from config.learned32 import *

input_layer = "spelling"
