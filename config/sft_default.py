# Fine-tunes what `python train.py` made, in two minutes on two CPU cores: signatures in, docstrings
# out. Any other small run does too: --init_from=out/RUN --out_dir=out/RUN/sft.
init_from = "out"
dataset = "docstrings"
batch_size = 8
max_steps = 150
learning_rate = 1e-3
min_lr = 1e-4
warmup_steps = 15
weight_decay = 0.01
eval_interval = 75
