# Is it the bits of the id, or would any injective code do? Random +-1 codes of three widths.
# 12 runs, three of them of studies/recodings.py; 5 minutes on two cores.
from config.studies.bytes import *

variants = "fixed; " + "; ".join(f"random random_width={width}" for width in (8, 32, 128))
