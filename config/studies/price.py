# What codes cost against the table by tokens, each token seen once. Predicted from runs of 6.6 M
# tokens of another text: fixed within 1% of the table at 14 M tokens [9, 20]; spelling ahead from
# 1 M tokens on and not behind at 16 M.
# 9 runs of 15 M tokens, 4 hours on two cores.
#
# The text is the documentation of C++ and of Windows drivers (github.com/MicrosoftDocs: cpp-docs,
# windows-driver-docs) and the Python Enhancement Proposals (github.com/python/peps), a document
# a row; the folder documents/ has them as files. Prepare it first:
#   python prepare_data.py --dataset=documents-4096 --source=files --vocab_size=4096 \
#     --files='documents/driver-docs.parquet,documents/cpp-docs.parquet,documents/peps.parquet' \
#     --probabilities=0.5,0.4,0.1 --max_tokens=17000000
# The mixture ends with the PEPs, after 15,176,357 training tokens: just enough for a run.
variants = ["learned table_std=0.1", "fixed", "spelling"]
seeds = "11,12,13"

dataset = "documents-4096"
n_layer = 6
min_lr = 2.5e-3  # no decay: every point is worth as much as an end
max_steps = 14_800  # x 1,024 = 15.2 M tokens a run
eval_interval = 400
eval_tokens = 131_072
