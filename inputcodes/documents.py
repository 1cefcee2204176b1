"""Documents: what a text or the row of a conversation says, and its tokens.

A document is a list of turns: a plain text is one turn of no role, a conversation has roles. Its
tokens, the last one closing every document in a shard:

    a text           ...text... <|endoftext|>
    a conversation   <|user|> ...prompt... <|endofturn|>
                     <|assistant|> ...response... <|endofturn|> <|endoftext|>

No text is ever encoded to a special token, so the tokens alone say whose words are whose:
`response_mask` finds the ones that fine-tuning learns, and no file beside the shards is needed. A
turn of the assistant that is not to be learned (`"weight": 0`) ends with two <|endofturn|>.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inputcodes.ngrams import Counts, count_ngrams
from inputcodes.tokenizer import TokenIds, Tokenizer

# Why a document is left out: texts, then conversations besides.
SKIPS = ("empty", "binary", "not_utf8", "surrogate", "not_text",
         "not_chat", "unknown_role", "not_only_text", "no_answer")  # fmt: skip
SPLITS = ("train", "val")
CHUNK_CHARACTERS = 1 << 20  # what a worker gets at a time
CHUNK_DOCUMENTS = 4096
HASHED = 1 << 20  # bytes of a document that decide its side: of a long one the first part is known
ROLES = ("system", "user", "assistant")
# What other formats call them. Results of tools are words that the assistant is given.
ROLE_NAMES = {"human": "user", "gpt": "assistant", "developer": "system", "tool": "user",
              "function": "user", "observation": "user", "function_call": "assistant"}  # fmt: skip
END_OF_TURN = "<|endofturn|>"
UNLEARNED = ("0", "0.0", "False")  # weights, which a column of a table may hold as strings
# The first set of columns that a row has is read: chat messages, ShareGPT, pairs, Alpaca.
CHAT_COLUMNS = (
    ("messages",),
    ("conversations",),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("instruction", "output"),
)
MORE_CHAT_COLUMNS = ("system", "history")  # read where a row has them


class Item(NamedTuple):
    """A document (text, bytes or the row of a conversation), or a part of a long text.

    `split` is "" where the hash of the document decides; parts have that of the first one as
    `first_hash`, and `ends` is false if further ones follow; `note` says why a file that is no text
    is left out.
    """

    value: Any
    split: str = ""
    first_hash: int | None = None
    ends: bool = True
    note: str = ""


class Turn(NamedTuple):
    """What a role ("" in a plain text) says, and whether fine-tuning learns it."""

    role: str
    text: str
    learned: bool = True


class LeftOut(Exception):
    """A document is left out, for the one of SKIPS that the message says."""


def read_text(value: Any) -> str:
    """A plain text, from a string or the bytes of a file; LeftOut if it is none."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise LeftOut("binary" if b"\0" in value else "not_utf8") from error
    if not isinstance(text, str):
        raise LeftOut("empty" if text is None else "not_text")
    if "\0" in text:
        raise LeftOut("binary")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LeftOut("surrogate") from error
    if not text.strip():
        raise LeftOut("empty")
    return text


def read_chat(row: dict[str, Any]) -> list[Turn]:
    """The turns of a conversation, from a row with one of the sets of CHAT_COLUMNS.

    A `system` text comes before them, unless they begin with one, and so do the pairs of Alpaca's
    `history`. Raises LeftOut, which says why.
    """
    messages = _messages(row)
    if not isinstance(messages, list) or not messages:
        raise LeftOut("not_chat" if messages != [] else "empty")
    turns = [turn for turn in map(_turn, messages) if turn.text]  # no empty system text
    system = row.get("system")
    if str(system or "").strip() and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", read_text(system)))
    if not any(turn.role == "assistant" and turn.learned for turn in turns):
        raise LeftOut("no_answer")
    return turns


def _messages(row: dict[str, Any]) -> Any:
    for name in ("messages", "conversations"):
        if name in row:
            return row[name]
    prompt = row.get("prompt", row.get("instruction"))
    if isinstance(prompt, str) and (more := row.get("input")):
        if not isinstance(more, str):
            raise LeftOut("not_text")
        prompt = "\n\n".join(text for text in (prompt, more) if text.strip())
    answer = next(row[name] for name in ("response", "completion", "output") if name in row)
    messages: list[Any] = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(type(h) is list and len(h) == 2 for h in history):
        raise LeftOut("not_chat")
    for pair in (*history, (prompt, answer)):
        for role, value in zip(("user", "assistant"), pair, strict=True):
            messages += value if isinstance(value, list) else [{"role": role, "content": value}]
    return messages


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict) or not message.keys() & {"content", "value"}:
        raise LeftOut("not_chat")
    role: Any = message.get("role") or message.get("from")
    if not isinstance(role, str) or (role := ROLE_NAMES.get(role, role)) not in ROLES:
        raise LeftOut("unknown_role")
    content: Any = message.get("content")
    if content is None:
        content = message.get("value")
    if isinstance(content, list):
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, dict) and str(part.get("type") or "text").endswith("text")
        ]
        only_text = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
        content = "".join(map(str, texts)) if only_text else content
    if isinstance(content, list) or message.get("tool_calls") or message.get("function_call"):
        raise LeftOut("not_only_text")
    empty = role == "system" and not str(content or "").strip()
    learned = str(message.get("weight")) not in UNLEARNED
    return Turn(role, "" if empty else read_text(content), learned)


def split_hash(utf8: bytes) -> int:
    """A keyed hash, evenly spread over [0, 2^64): the same text is always on the same side."""
    digest = hashlib.blake2b(utf8[:HASHED], digest_size=8, key=b"input-codes split").digest()
    return int.from_bytes(digest, "little")


def split_of(digest: int, val_below: int) -> str:
    return "val" if digest < val_below else "train"


def encode_turns(tokenizer: Tokenizer, turns: Sequence[tuple[Any, ...]]) -> TokenIds:
    """The tokens (T,) of turns or (role, text) pairs, without the <|endoftext|> that follows."""
    special = tokenizer.special
    parts: list[Any] = [np.empty(0, dtype=tokenizer.dtype)]
    for role, text, learned in (Turn(*turn) for turn in turns):
        ids = tokenizer.encode_array(text)
        end = [special[END_OF_TURN]] * (1 if learned or role != "assistant" else 2)
        parts += [[special[f"<|{role}|>"]], ids, end] if role else [ids]
    return np.concatenate(parts).astype(tokenizer.dtype, copy=False)


def response_mask(tokenizer: Tokenizer, tokens: TokenIds) -> NDArray[np.bool_]:
    """Which of the tokens (T,) fine-tuning learns, (T,): the assistant's, each turn with its end.

    Turns that end with two <|endofturn|> are not among them.
    """
    marks = [tokenizer.special[f"<|{role}|>"] for role in ROLES]
    places = np.flatnonzero(np.isin(tokens, [*marks, tokenizer.end_of_text]))
    says = tokens[places] == tokenizer.special["<|assistant|>"]
    ends = np.append(places, len(tokens))[1:]
    is_end = tokens == tokenizer.special[END_OF_TURN]
    says &= ~(is_end[ends - 1] & is_end[ends - 2])
    before = places[0] if len(places) else len(tokens)
    mask = np.concatenate((np.zeros(before, dtype=bool), np.repeat(says, ends - places)))
    mask[places] = False
    return mask


def read_item(item: Item, chat: bool) -> tuple[list[Turn], int, int]:
    """The turns of an item, how many bytes of UTF-8 they are, and their split_hash; or LeftOut."""
    if item.first_hash is not None:
        return [Turn("", item.value)], len(item.value.encode()), item.first_hash
    turns = read_chat(item.value) if chat else [Turn("", read_text(item.value))]
    utf8 = "".join(turn.text for turn in turns).encode()
    return turns, len(utf8), split_hash(utf8)


@dataclass
class Chunk:
    """Some documents, their size in characters, and the state of the stream after them."""

    items: list[Item]
    size: int
    state: dict[str, Any]


def chunks_of(stream: Any) -> Iterator[Chunk]:
    """A corpus.Stream in portions of CHUNK_CHARACTERS or one document more."""
    items: list[Item] = []
    size = 0
    for item in stream:
        items.append(item)
        size += _characters(item.value)
        if size >= CHUNK_CHARACTERS or len(items) >= CHUNK_DOCUMENTS:
            yield Chunk(items, size, stream.state())
            items, size = [], 0
    if items:
        yield Chunk(items, size, stream.state())


def _characters(value: Any) -> int:
    """The size of a text, or of all texts of a conversation."""
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str | bytes) else 0


def count_chunk(max_ngram: int, val_below: int, chat: bool, items: list[Item]) -> Counts:
    """The n-grams of the training documents of a chunk."""
    texts: list[str] = []
    for item in items:
        with contextlib.suppress(LeftOut):
            turns, _, digest = read_item(item, chat)
            if (item.split or split_of(digest, val_below)) == "train":
                texts += [turn.text for turn in turns]
    return count_ngrams(texts, max_ngram)


class Encoded(NamedTuple):
    """What became of a document or of a part of a long one.

    `outcome` is its split, or why it is left out; `tokens` (T,) stand for `text_bytes` of UTF-8;
    `ends` says whether the document ends there, so that <|endoftext|> follows.
    """

    outcome: str
    tokens: TokenIds
    text_bytes: int
    ends: bool


def encode_chunk(
    tokenizer: Tokenizer, val_below: int, chat: bool, items: list[Item]
) -> list[Encoded]:
    """Check, split and encode some items, conversations if `chat`."""
    encoded = []
    for item in items:
        try:
            turns, text_bytes, digest = read_item(item, chat)
            outcome = item.split or split_of(digest, val_below)
        except LeftOut as reason:
            turns, text_bytes, outcome = [], 0, str(reason)
        encoded.append(Encoded(outcome, encode_turns(tokenizer, turns), text_bytes, item.ends))
    return encoded


def until(encoded: list[Encoded], max_tokens: int, whole: bool) -> list[Encoded]:
    """The documents up to the one with which training tokens reach `max_tokens`.

    If not `whole`, up to the part, with which its document then ends.
    """
    for number, document in enumerate(encoded):
        if document.outcome == "train":
            max_tokens -= len(document.tokens) + document.ends
        if max_tokens <= 0 and (document.ends or not whole):
            return [*encoded[:number], document._replace(ends=True)]
    return encoded
