# What is the least that an input layer must have? From the paper's K = 12 bits to a table.
# 55 runs of 3 M tokens, an hour on two cores. On seeds 1 to 3 table_std=0.1 was the best of three
# in a first look, and the rate the best of four for table, fixed and spelling (learning_rate.py;
# with 6 layers table and spelling, on seed 1): the seeds here are others.
variants = [
    "learned table_std=0.1",
    "learned",
    "compressed compression=8",
    "fixed",
    "affine",
    "codeword code_length=24",
    "codeword code_length=36",
    "codeword code_length=60",
    "codeword code_length=128",
    "random code_length=128",
    "spelling",
]
seeds = "11,12,13,14,15"

dataset = "stdlib-4096"
n_layer = 2
max_steps = 3000  # x 1,024 = 3.07 M tokens a run
eval_interval = 500
eval_tokens = 131_072
learning_rate = 5e-3
