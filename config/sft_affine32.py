from config.sft_learned32 import *

init_from = "out/affine32"
input_layer = "affine"
