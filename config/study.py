# What `python compare.py` runs: the paper's variants (its Table 1) on the default run's model.
from config.default import *

variants = "learned; fixed; affine"
seeds = "1,2,3"

max_steps = 3200  # x 1,024 = 3.3 M tokens a run
eval_interval = 320
eval_tokens = 262_144
