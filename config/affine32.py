from config.learned32 import *

input_layer = "affine"  # the paper stopped this run early, after 16.276 B tokens; this is matched
