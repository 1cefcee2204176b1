# Fine-tunes what `python train.py` made, in 1 to 2 minutes on two CPU cores: signatures in,
# docstrings out. Any other small run of bytes does too: --init_from=out/RUN --out_dir=out/RUN/sft.
init_from = "out"
dataset = "docstrings"

batch_size = 8  # x 256 = 2,048 positions a step
max_steps = 800  # 2.5 times through the 6,600 examples
learning_rate = 1e-3
min_lr = 0.0
warmup_steps = 50
weight_decay = 0.01

eval_interval = 200
log_interval = 50
