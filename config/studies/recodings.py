# Does it matter which number a token has? Eight affine recodings of the same ids.
# 27 runs, 11 minutes on two cores.
from config.studies.bytes import *

variants = "fixed; " + "; ".join(f"affine code_seed={seed}" for seed in range(1, 9))
