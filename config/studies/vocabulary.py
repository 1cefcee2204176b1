# The standard library in four vocabularies (K = 8, 10, 12 and 14 bits); compare bits per byte.
# 36 runs of 3 M tokens, 75 to 90 minutes on two cores.
_layers = ("learned table_std=0.1", "fixed", "spelling")
variants = [f"{layer} dataset=stdlib-{V}" for V in (256, 1024, 4096, 16_384) for layer in _layers]
seeds = "11,12,13"

n_layer = 2
max_steps = 3000  # x 1,024 = 3.07 M tokens a run
eval_interval = 500
eval_tokens = 0  # all, so that every vocabulary is measured on the same text
