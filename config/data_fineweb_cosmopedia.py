"""The paper's sources: `python prepare_data.py config/data_fineweb_cosmopedia.py`.

FineWeb-Edu with probability 0.8 and Cosmopedia with 0.2, 65,536 ids, enough tokens that 5,216 steps
of 3,276,800 see none twice. The n-grams are counted on this text, some 2.85 bytes per token: about
49 GB of text go through and 34 GB of shards are written. `--ngram_file=LIST` takes the paper's own
n-grams (docs/data.md), 1.74 bytes per token.
"""

dataset = "fineweb_cosmopedia"
source = "hub"
vocab_size = 65536

# The eight parts of Cosmopedia by their rows in thousands, so that all last equally long.
_cosmopedia = {
    "auto_math_text": 1950,
    "khanacademy": 24,
    "openstax": 126,
    "stanford": 1020,
    "stories": 4990,
    "web_samples_v1": 12400,
    "web_samples_v2": 10300,
    "wikihow": 179,
}
_rows = sum(_cosmopedia.values())

# The 10-billion-token sample covers all years of FineWeb-Edu: 9.67 million documents, of which
# this stream takes most; the larger samples would be read from their beginning only.
hub = ",".join(
    ["HuggingFaceFW/fineweb-edu:sample-10BT"]
    + [f"HuggingFaceTB/cosmopedia:{part}" for part in _cosmopedia]
)
probabilities = ",".join(["0.8"] + [repr(0.2 * rows / _rows) for rows in _cosmopedia.values()])

max_tokens = 17_200_000_000  # for training; 5,216 steps of 3,276,800 are 17.092e9
val_fraction = 0.0005  # about 8.6 million tokens
count_characters = 1_000_000_000
