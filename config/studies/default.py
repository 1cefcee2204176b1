# What `python compare.py` runs: the paper's variants (its Table 1) on the default run's model.
# 9 runs of 2.9 M tokens, 18 minutes on two cores.
variants = ["learned", "fixed", "affine"]
seeds = "1,2,3"

max_steps = 2800  # x 1,024 = 2.87 M tokens a run
eval_interval = 280
eval_tokens = 262_144
