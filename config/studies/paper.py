# Does the paper's finding hold where it was made, and is it the density of the vocabulary that
# decides? The paper's 65,536 ids have the frequent n-grams of 32 languages; English text uses some
# 2,000 of them, 1.74 bytes a token. stdlib-65536 fills the same places with its own n-grams.
# Predicted from one seed at V = 8,433: on the paper's n-grams fixed is 8.5% behind the table,
# codeword within 1% of it and spelling within 2%. Of twice the tokens (--max_steps=4000), predicted
# from 0.8 and 2.0 M: spelling ahead by 1 to 3%, codeword within 1% of the table.
# 24 runs of 2 M tokens, 2.5 hours on two cores with --compile --dtype=bfloat16 (the head has
# 65,536 rows).
#
# The list is the paper's author's (Hugging Face: AVBochkov/Embeddings, _n-gramms-2-3.txt; as a JSON
# list or one n-gram a line). Prepare the data set first:
#   python prepare_data.py --dataset=stdlib-paper --vocab_size=65536 --ngram_file=FILE
_paper = ("learned table_std=0.1", "fixed", "affine", "codeword code_length=128", "spelling")
_dense = ("learned table_std=0.1", "fixed", "spelling")
variants = [f"{layer} dataset=stdlib-paper" for layer in _paper]
variants += [f"{layer} dataset=stdlib-65536" for layer in _dense]
seeds = "11,12,13"

n_layer = 2
max_steps = 2000  # x 1,024 = 2.05 M tokens a run
eval_interval = 250
eval_tokens = 131_072
