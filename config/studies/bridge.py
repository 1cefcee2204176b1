# The second paper's question inside a GPT: codes of 32 numbers (4:1) that are learned with the
# task, against codes that compress a table which another run has learned (its principal
# components), trained further or frozen; beside them random codes, frozen, and a whole table.
# All tables start with sd 0.1, and all codes are tiled to 128.
# Predicted: compressed and then trained further is 1 to 2% ahead of learned codes of that width, as
# it starts from what a whole run has learned; frozen it is up to 3% behind them; frozen random
# codes are more than 5% behind them.
# 15 runs of 3.1 M tokens, 20 minutes on two cores with --compile --dtype=bfloat16; and once more at
# 8:1 (codes of 16 numbers):
#   python compare.py config/studies/bridge.py --compression=8 --study_dir=out/studies/bridge8
#
# The run whose table is compressed comes first. Its seed is none of the study's:
#   python train.py --dataset=stdlib-4096 --n_layer=2 --input_layer=learned --table_std=0.1 \
#     --max_steps=1600 --eval_tokens=131072 --seed=21 --out_dir=out/table
variants = [
    "compressed",
    "compressed table_of=out/table",
    "compressed table_of=out/table train_table=False",
    "compressed train_table=False",
    "learned",
]
seeds = "11,12,13"

dataset = "stdlib-4096"
n_layer = 2
compression = 4
table_std = 0.1
max_steps = 3000  # x 1,024 = 3.07 M tokens a run
eval_interval = 400
eval_tokens = 131_072
