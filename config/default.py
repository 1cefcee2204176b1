# What `python train.py` runs: a table-free model of bytes, five minutes on two CPU cores.
# A small, fast model that sees many tokens beat wider ones in this budget.
out_dir = "out"

n_layer = 4
n_head = 2
n_embd = 128
block_size = 256

batch_size = 4  # x 256 = 1,024 tokens a step
max_steps = 6000  # x 1,024 = 6.1 M tokens, half of the corpus
learning_rate = 2.5e-3
min_lr = 0.0
warmup_steps = 200

eval_interval = 1500
log_interval = 50
