# Depth or a table? Three depths, and `fixed` with the table's 524,288 numbers spent on three more
# blocks of 196,608 (5, 7 and 11 layers, each for 2, 4 and 8).
# 36 runs of 2 M tokens, 65 minutes on two cores.
from config.default import *

_layers = ("learned table_std=0.1", "fixed", "spelling")
variants = [f"{layer} n_layer={depth}" for depth in (2, 4, 8) for layer in _layers]
variants += [f"fixed n_layer={depth + 3}" for depth in (2, 4, 8)]
seeds = "11,12,13"

dataset = "stdlib-4096"
max_steps = 2000  # x 1,024 = 2.05 M tokens a run
eval_interval = 250
eval_tokens = 131_072
