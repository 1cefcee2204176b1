# The table and the bits, each at four peak learning rates: the paper tuned neither.
# 24 runs, 10 minutes on two cores.
from config.studies.bytes import *

_rates = (1.25e-3, 2.5e-3, 5e-3, 1e-2)
variants = "; ".join(f"{layer} learning_rate={r}" for r in _rates for layer in ("learned", "fixed"))
