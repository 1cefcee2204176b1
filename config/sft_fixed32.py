from config.sft_learned32 import *

init_from = "out/fixed32"
input_layer = "fixed"
