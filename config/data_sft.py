"""Conversations to fine-tune on: `python prepare_data.py config/data_sft.py`.

The paper does not name its supervised mixture. This is SmolTalk's selection for small models; any
data set of messages, or of prompts and responses, does.
"""

dataset = "sft"
source = "hub"
hub = "HuggingFaceTB/smol-smoltalk"
chat = True
tokenizer = "data/fineweb_cosmopedia/tokenizer.json"  # of the models to fine-tune
val_fraction = 0.01
