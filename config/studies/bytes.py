# The recipe that the studies of bytes share, and with it their runs: 0.6 M tokens, 45 s a run.
from config.default import *

runs_dir = "out/study_bytes"

max_steps = 600
warmup_steps = 100
eval_interval = 100
eval_tokens = 131_072
