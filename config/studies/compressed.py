# Between the table and the bits, on bytes: learned codes of width 64 down to 4, tiled to 128.
# 24 runs of 0.6 M tokens, 20 minutes on two cores.
variants = ["learned table_std=0.1", "learned", "fixed"]
variants += [f"compressed compression={ratio}" for ratio in (2, 4, 8, 16, 32)]
seeds = "11,12,13"

max_steps = 600  # x 1,024 = 0.61 M tokens a run
warmup_steps = 100
eval_interval = 100
eval_tokens = 131_072
