"""What several test files share: texts and tokenizers made of them."""

import random

from inputcodes.ngrams import choose_ngrams, count_ngrams
from inputcodes.tokenizer import Tokenizer

ENGLISH = ["the", "then", "them", "there", "this", "that", "of", "and", "in", "to", "a", "is"]
WORDS = [*ENGLISH, "café", "naïve", "中文", "中国", "שלום", "سلام", "été", "😀"]


def documents(count: int = 400, seed: int = 0) -> list[str]:
    """Word salad with a few hundred distinct n-grams, some of them not ASCII."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=60)) + ".\n" for _ in range(count)]


def build_tokenizer(vocab_size: int, texts: list[str]) -> Tokenizer:
    """The tokenizer with the most frequent n-grams of `texts`."""
    return Tokenizer(vocab_size, choose_ngrams(count_ngrams(texts), vocab_size))
