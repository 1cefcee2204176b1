# What `python train.py` runs: a table-free model of bytes, five minutes on two CPU cores.
out_dir = "out"
n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
batch_size = 16
max_steps = 300
eval_interval = 100
