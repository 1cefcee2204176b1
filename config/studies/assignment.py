# Does it matter which number a token has? V = 4,096 ids in the order of frequency, in the order of
# their text, and at random: with K = 12 bits `random` deals all 4,096 codes out anew, and an affine
# map does so linearly.
# 39 runs of 1.6 M tokens, 30 to 60 minutes on two cores. All end behind the bigram:
# docs/studies.md has 18 of them with 6 layers and 3 M tokens, an hour.
#
# The second data set is prepared first:
#   python prepare_data.py --dataset=stdlib-4096-text --vocab_size=4096 --ngram_order=text
variants = [
    "fixed",
    *(f"random code_length=12 code_seed={seed}" for seed in (1, 2, 3, 4)),
    *(f"affine code_seed={seed}" for seed in (1, 2, 3, 4)),
    *(f"codeword code_length=60 code_seed={seed}" for seed in (1, 2)),
    "fixed dataset=stdlib-4096-text",
    "codeword code_length=60 dataset=stdlib-4096-text",
]
seeds = "11,12,13"

dataset = "stdlib-4096"
n_layer = 2
max_steps = 1600  # x 1,024 = 1.64 M tokens a run
eval_interval = 200
eval_tokens = 131_072
