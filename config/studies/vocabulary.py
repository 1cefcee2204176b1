# One corpus in five vocabularies (K = 8, 10, 12, 14 and 16 bits); compare their bits per byte.
# 20 runs, 13 minutes on two cores, most of them at V = 65,536.
from config.default import *

_sizes = (256, 1024, 4096, 16_384, 65_536)
variants = "; ".join(
    f"{layer} dataset=stdlib-{V}" for V in _sizes for layer in ("learned", "fixed")
)
seeds = "1,2"

max_steps = 300
warmup_steps = 100
eval_interval = 150
eval_tokens = 0  # all, so that every vocabulary is measured on the same text
