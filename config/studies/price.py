# What the bits cost against the table, by tokens seen, at two depths. K = 12.
# 12 runs, 18 minutes on two cores.
from config.default import *

variants = "; ".join(f"{layer} n_layer={L}" for L in (2, 6) for layer in ("learned", "fixed"))
dataset = "stdlib-4096"

min_lr = 2.5e-3  # no decay: every point is worth as much as an end
max_steps = 1600
eval_interval = 80
eval_tokens = 65_536
