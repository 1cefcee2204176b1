# Does it matter which number a token has? V = 4,096 ids in the order of frequency, in the order of
# their text, and at random. With K = 12 bits `random` deals all 4,096 codes out anew, and an affine
# map does so linearly; for codewords the n-grams themselves get other ids, in four data sets.
# 36 runs of 3 M tokens, two hours on two cores with --compile --dtype=bfloat16. docs/studies.md
# has the commands that prepare the other data sets.
_codeword = "codeword code_length=60"
variants = [
    "fixed",
    *(f"random code_length=12 code_seed={seed}" for seed in (1, 2)),
    *(f"affine code_seed={seed}" for seed in (1, 2)),
    "fixed dataset=stdlib-4096-text",
    _codeword,
    f"{_codeword} dataset=stdlib-4096-text",
    *(f"{_codeword} dataset=stdlib-4096-random{i}" for i in (1, 2, 3, 4)),
]
seeds = "11,12,13"

dataset = "stdlib-4096"
n_layer = 6
max_steps = 3000  # x 1,024 = 3.07 M tokens a run
eval_interval = 200
eval_tokens = 131_072
