# Is it the bits of the id, or would any injective code do? Random +-1 codes of three widths.
from config.study_bytes import *

variants = "fixed; " + "; ".join(f"random random_width={width}" for width in (8, 32, 128))
