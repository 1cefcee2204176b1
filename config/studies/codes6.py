# config/studies/codes.py at 6 layers, where depth may do what a table does.
# 15 runs of 3 M tokens, 45 to 75 minutes on two cores.
from config.studies.codes import *

variants = [
    "learned table_std=0.1",
    "fixed",
    "codeword code_length=128",
    "spelling",
    "spelling spelling_id=False",
]
seeds = "11,12,13"

n_layer = 6
