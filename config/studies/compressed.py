# Between the table and the bits: learned codes of width 64 down to 4, tiled to 128.
# 21 runs, three of them of studies/recodings.py; 9 minutes on two cores.
from config.studies.bytes import *

variants = "learned; fixed; " + "; ".join(f"compressed compression={c}" for c in (2, 4, 8, 16, 32))
