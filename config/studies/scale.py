# Do models of codes come to copy late because a code's numbers are ten times a table's? The recipe
# and the text of price.py, which says how to prepare it. table_std=1 is a table as large as a code,
# code_scale=0.1 a code as small as a table; 0.3 was added after looking at those.
# 21 runs of 15 M tokens, 10 hours on two cores; --runs_dir=out/studies/price shares those of price.
from config.studies.price import *

variants = [
    "learned table_std=0.1",
    "learned table_std=1",
    "spelling",
    "spelling code_scale=0.1",
    "spelling code_scale=0.3",
    "codeword code_scale=0.1",
    "fixed code_scale=0.1",
]
