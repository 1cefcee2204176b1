# `python train.py` runs the defaults at the top of train.py and model.py: a table-free model of
# bytes, 4 to 8 minutes on two CPU cores. Begin a file of your own with
# `from config.default import *` and assign what differs.
