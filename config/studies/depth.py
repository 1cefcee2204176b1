# Depth or a table? A table of V = 4,096 has 524,288 numbers, as many as 2.7 blocks of 196,608:
# `fixed` with three more blocks is compared with the table, too.
# 12 runs of 2 M tokens, 15 to 30 minutes on two cores. Deeper: --n_layer=4 (8) with
# "fixed n_layer=7" (11) as the last variant, 25 to 45 (40 to 80) minutes.
across = "n_layer"
variants = ["learned table_std=0.1", "fixed", "spelling", "fixed n_layer=5"]
seeds = "11,12,13"

dataset = "stdlib-4096"
n_layer = 2
max_steps = 2000  # x 1,024 = 2.05 M tokens a run
eval_interval = 250
eval_tokens = 131_072
