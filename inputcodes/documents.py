"""Documents: what a row of a source says, on which side of the split it is, and its tokens.

A document is a list of turns (role, text): a plain text is one turn of no role, a conversation
has roles. Its tokens, the last one closing every document in a shard:

    a text           ...text... <|endoftext|>
    a conversation   <|user|> ...prompt... <|endofturn|>
                     <|assistant|> ...response... <|endofturn|> <|endoftext|>

No text is ever encoded to a special token, so the tokens alone say whose words are whose:
`response_mask` finds the ones that fine-tuning learns, and no file beside the shards is needed.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inputcodes.ngrams import Counts, count_ngrams
from inputcodes.shards import SPLITS
from inputcodes.tokenizer import TokenIds, Tokenizer

SKIPS = ("empty", "binary", "not_utf8", "surrogate", "not_text", "not_chat")
OUTCOMES = (*SPLITS, *SKIPS)
SPLIT_KEY = b"input-codes split"
ROLES = ("system", "user", "assistant")
END_OF_TURN = "<|endofturn|>"

Turns = list[tuple[str, str]]  # role ("" in a plain text) and text


@dataclass(frozen=True)
class Document:
    """What was read: the turns, their UTF-8 one after the other, and the outcome.

    The outcome is one of SKIPS, or "" if there is nothing against the document.
    """

    turns: Turns
    utf8: bytes = b""
    outcome: str = ""


def read_text(value: Any) -> Document:
    """A plain text, from a string or the bytes of a file."""
    if value is None:
        return Document([], outcome="empty")
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return Document([], outcome="binary" if b"\0" in value else "not_utf8")
    if not isinstance(text, str):
        return Document([], outcome="not_text")
    if "\0" in text:
        return Document([], outcome="binary")
    try:
        return Document([("", text)], text.encode(), "" if text.strip() else "empty")
    except UnicodeEncodeError:
        return Document([], outcome="surrogate")


def read_chat(row: dict[str, Any]) -> Document:
    """A conversation, from `{"messages": [{"role", "content"}]}` or `{"prompt", "response"}`.

    It is left out as `not_chat` if its messages are not of that shape or of other ROLES, as
    `empty` if a turn is or nobody answers, and else for what is wrong with the first bad text.
    """
    messages = row.get("messages")
    if "messages" not in row:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        return Document([], outcome="not_chat")
    texts = [read_text(message["content"]) for message in messages]
    outcome = next((text.outcome for text in texts if text.outcome), "")
    turns = [
        (message["role"], content)
        for message, text in zip(messages, texts, strict=True)
        for _, content in text.turns
    ]
    if not outcome and "assistant" not in dict(turns):
        outcome = "empty"
    return Document(turns, b"".join(text.utf8 for text in texts), outcome)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and "content" in value


def split_of(utf8: bytes, val_fraction: float) -> str:
    """The side of a document: the same for the same text, whatever else there is."""
    digest = hashlib.blake2b(utf8, digest_size=8, key=SPLIT_KEY).digest()
    return "val" if int.from_bytes(digest, "little") < val_fraction * 2**64 else "train"


def encode_turns(tokenizer: Tokenizer, turns: Turns) -> TokenIds:
    """The tokens of a document but the last one, (T,); see the top of this file."""
    special = tokenizer.special
    parts: list[Any] = []
    for role, text in turns:
        ids = tokenizer.encode_array(text)
        parts += [[special[f"<|{role}|>"]], ids, [special[END_OF_TURN]]] if role else [ids]
    return np.concatenate(parts).astype(tokenizer.dtype, copy=False)


def response_mask(tokenizer: Tokenizer, tokens: TokenIds) -> NDArray[np.bool_]:
    """Which of the tokens (T,) an assistant says, the end of its turn included, (T,)."""
    marks = [tokenizer.special[f"<|{role}|>"] for role in ROLES]
    places = np.flatnonzero(np.isin(tokens, [*marks, tokenizer.end_of_text]))
    says = tokens[places] == tokenizer.special["<|assistant|>"]
    lengths = np.diff(places, append=len(tokens))
    before = places[0] if len(places) else len(tokens)
    mask = np.concatenate((np.zeros(before, dtype=bool), np.repeat(says, lengths)))
    mask[places] = False
    return mask


@dataclass
class Encoded:
    """What became of a chunk of N documents.

    `tokens` (T,), all documents one after the other; `lengths` (N,) their tokens, 0 if left
    out; `text_bytes` (N,) the UTF-8 they stand for; `outcomes` (N,) indices into OUTCOMES.
    """

    tokens: TokenIds
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    outcomes: NDArray[np.uint8]

    def until(self, max_tokens: int) -> "Encoded":
        """The documents up to the one with which training tokens reach `max_tokens`."""
        reached = np.cumsum(np.where(self.outcomes == 0, self.lengths, 0)) >= max_tokens
        last = int(np.argmax(reached)) + 1 if reached.any() else len(reached)
        tokens = self.tokens[: self.lengths[:last].sum()]
        return Encoded(tokens, self.lengths[:last], self.text_bytes[:last], self.outcomes[:last])


def encode_chunk(
    tokenizer: Tokenizer, val_fraction: float, chat: bool, values: list[Any]
) -> Encoded:
    """Check, split and encode some (split, document) pairs, conversations if `chat`."""
    parts = []
    lengths, text_bytes = np.zeros((2, len(values)), dtype=np.int64)
    outcomes = np.zeros(len(values), dtype=np.uint8)
    end = np.array([tokenizer.end_of_text], dtype=tokenizer.dtype)
    for number, (split, value) in enumerate(values):
        document = read_chat(value) if chat else read_text(value)
        outcome = document.outcome or split or split_of(document.utf8, val_fraction)
        outcomes[number] = OUTCOMES.index(outcome)
        if not document.outcome:
            ids = encode_turns(tokenizer, document.turns)
            parts += [ids, end]
            lengths[number], text_bytes[number] = len(ids) + 1, len(document.utf8)
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype=tokenizer.dtype)
    return Encoded(tokens, lengths, text_bytes, outcomes)


def count_chunk(max_ngram: int, val_fraction: float, chat: bool, values: list[Any]) -> Counts:
    """The n-grams of the training documents of a chunk."""
    texts = []
    for split, value in values:
        document = read_chat(value) if chat else read_text(value)
        if (document.outcome or split or split_of(document.utf8, val_fraction)) == "train":
            texts += [text for _, text in document.turns]
    return count_ngrams(texts, max_ngram)


def docstring_rows(paths: Sequence[str]) -> Iterator[dict[str, str]]:
    """Prompt and response of every documented function in Python files.

    The prompt is its signature, the response the first paragraph of its docstring.
    """
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about the library's own source
            try:
                tree = ast.parse(Path(path).read_bytes())
            except (SyntaxError, ValueError):  # templates, and files kept to test bad syntax
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                signature = f"def {node.name}({ast.unparse(node.args)})"
                if docstring:
                    yield {"prompt": signature, "response": docstring.split("\n\n")[0]}
