"""The tokenizers: bytes, n-grams, the paper's layout, and encodings of other libraries.

The vocabulary size chooses the layout, bytes and n-grams or the paper's 65,536 ids (ngrams.py);
nothing is downloaded. Encoding is greedy: at every position the longest n-gram wins, else the
character. Ids left over become reserved special tokens, so every id is assigned and every id
decodes.

Encodings of tiktoken (`gpt2`, `cl100k_base`) and files of the `tokenizers` library have any number
of ids. `to_json` holds them whole, compressed: nothing is looked up afterwards.
"""

import base64
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tiktoken
from numpy.typing import NDArray

from inputcodes.configurator import UserError
from inputcodes.files import system_errors, write_text
from inputcodes.ngrams import lay_out, pattern_of

SPECIAL_NAMES = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endofturn|>")
MAX_IDS = 1 << 24  # of other libraries' vocabularies
TokenIds = NDArray[np.unsignedinteger[Any]]
EXACT_PROBES = (  # texts that a tokenizer with a normalizer or without some bytes changes
    " a  b\t\n\n c\r\n ",
    "Ab É e\u0301 ﬁ Ω İ \ufeff\u200b ▁ Ġ",
    "".join(map(chr, (*range(1, 0x800), *range(0x800, 0xD800, 97), *range(0xE000, 0x110000, 997)))),
)


class Tokenizer:
    """Text to token ids and back; every string of Unicode scalar values comes back exactly.

    `special` are the ids of special tokens by name (the five of SPECIAL_NAMES in every vocabulary,
    then others); `end_of_text` follows each document; `dtype` is that of ids in shards; `pattern`
    is the regular expression that cuts a text into the pieces that are looked up; `tokenizers_json`
    is the JSON of a tokenizer of the `tokenizers` library, which has no pattern here.
    """

    pattern = tokenizers_json = ""

    def __init__(self, vocab_size: int, ngrams: Sequence[str] = ()) -> None:
        ranks, special_ids = lay_out(vocab_size, ngrams)
        by_id = {token_id: text for text, token_id in ranks.items()}
        reserved = (f"<|reserved_{n}|>" for n in range(len(special_ids) - len(SPECIAL_NAMES)))
        special = dict(zip((*SPECIAL_NAMES, *reserved), special_ids, strict=True))
        self._assign(by_id, special, {"ngrams": list(ngrams)}, {})
        self.pattern = pattern_of(ngrams)
        self._to_ids = _tiktoken_ids(self.pattern, ranks) if vocab_size > 256 else _byte_ids

    @classmethod
    def named(cls, name: str) -> Self:
        """A tiktoken encoding such as `gpt2`, with the role marks it lacks as further ids."""
        if name not in tiktoken.list_encoding_names():
            known = ", ".join(tiktoken.list_encoding_names())
            if (file := Path(name) / "tokenizer.json").is_file():
                raise UserError(f"tokenizer={name!r} is a folder: pass --tokenizer={file}")
            raise UserError(f"no tiktoken encoding is called {name!r}; there are {known}")
        try:
            encoding = tiktoken.get_encoding(name)
        except Exception as error:
            raise UserError(
                f"tiktoken cannot load {name!r} ({type(error).__name__}): it needs the network "
                "once, or TIKTOKEN_CACHE_DIR naming a folder that holds the encoding"
            ) from error
        return cls._of_ranks(
            name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens
        )

    @classmethod
    def _of_ranks(
        cls, name: str, pat_str: str, ranks: dict[bytes, int], special: Mapping[str, int]
    ) -> Self:
        self = cls.__new__(cls)
        by_id = {token_id: text for text, token_id in ranks.items()}
        lines = "".join(f"{text.hex()} {token_id}\n" for text, token_id in sorted(ranks.items()))
        identity = {"encoding": name, "pat_str": pat_str, "other_special": dict(special)}
        self._assign(by_id, _completed(by_id, special), identity, {"ranks": lines})
        self.pattern, self._to_ids = pat_str, _tiktoken_ids(pat_str, ranks)
        return self

    @classmethod
    def _of_library(cls, file: str) -> Self:
        """The tokenizer of a JSON file of the `tokenizers` library, if it gives back every text."""
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                "a tokenizer of the `tokenizers` library needs it: pip install tokenizers"
            ) from error
        if normalizer := json.loads(file).get("normalizer"):
            raise _not_exact(f"its normalizer ({normalizer.get('type')}) changes texts")
        if dropout := json.loads(file)["model"].get("dropout"):
            raise UserError(f"its dropout={dropout} draws the ids of a text: set it to null")
        library = tokenizers.Tokenizer.from_str(file)
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # what looks like one in a text is text
        added = library.get_added_tokens_decoder()
        special = {token.content: n for n, token in added.items() if token.special}
        by_id = {n: token.content.encode() for n, token in added.items() if not token.special}
        value_of = {character: value for value, character in enumerate(byte_alphabet())}
        for token, token_id in library.get_vocab().items():
            if token_id not in added:
                if not value_of.keys() >= {*token}:
                    raise _not_exact(f"its token {token!r} is not written in bytes")
                by_id[token_id] = bytes(value_of[character] for character in token)
        self = cls.__new__(cls)
        self._assign(by_id, _completed(by_id, special), {"library": "tokenizers"}, {"file": file})
        self.tokenizers_json = file
        texts = self.texts()

        def to_ids(text: str) -> NDArray[Any]:
            ids = library.encode(text, add_special_tokens=False).ids
            utf8, back = text.encode(), b"".join([texts[n] for n in ids])
            if back != utf8:
                starts = range(0, len(utf8) + 1, 40)
                n = next(n for n in starts if utf8[n : n + 40] != back[n : n + 40])
                was, now = (part[n : n + 40].decode(errors="replace") for part in (utf8, back))
                raise _not_exact(f"{was!r} comes back as {now!r}")
            return np.array(ids)

        self._to_ids = to_ids
        for text in (*EXACT_PROBES, *(f"a {token.content} b" for token in added.values())):
            self.encode(text)  # what it does to others is seen when they are encoded
        return self

    def _assign(
        self,
        by_id: Mapping[int, bytes],
        special: dict[str, int],
        identity: dict[str, Any],
        payload: Mapping[str, str],
    ) -> None:
        """Set all but the encoder; `identity` and the hashes of `payload` make up the `sha256`."""
        texts = {**by_id, **{token_id: name.encode() for name, token_id in special.items()}}
        self.vocab_size = len(texts)
        if len(texts) < len(by_id) + len(special) or max(texts) >= len(texts):
            raise UserError("not a vocabulary: an id is missing or shared")
        self.special, self.end_of_text = special, special[SPECIAL_NAMES[0]]
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._bytes = [texts[token_id] for token_id in range(self.vocab_size)]
        hashes = {f"{name}_sha256": _sha256(text) for name, text in payload.items()}
        self._identity = identity | hashes
        self._payload = {name: _packed(text) for name, text in payload.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what looks like a special token is text. Errors: `encode_array`."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> TokenIds:
        """The ids of `text`, (T,) `dtype`; UserError for a lone surrogate, with its position."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {error.start} of the text is the lone surrogate "
                f"U+{ord(text[error.start]):04X}, which UTF-8 cannot hold; remove or replace it"
            ) from error
        try:
            return np.asarray(self._to_ids(text), dtype=self.dtype)
        except ValueError:  # a run of a million blanks, too long for tiktoken's regular expressions
            if self.tokenizers_json or len(text) < 2:
                raise
            halves = text[: len(text) // 2], text[len(text) // 2 :]
            return np.concatenate([self.encode_array(half) for half in halves])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 of any ids, special tokens as their names; ValueError outside [0, V)."""
        parts = []
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {int(token_id)} is outside [0, {self.vocab_size})")
            parts.append(self._bytes[token_id])
        return b"".join(parts)

    def texts(self) -> list[bytes]:
        """The bytes of text that each id stands for, V of them; empty for special tokens."""
        special = set(self.special.values())
        return [b"" if n in special else text for n, text in enumerate(self._bytes)]

    def token_bytes(self) -> NDArray[np.int64]:
        """How many bytes of text each id stands for, (V,); 0 for special tokens."""
        return np.array([len(text) for text in self.texts()], dtype=np.int64)

    def to_json(self) -> str:
        """The canonical JSON, from which `from_json` builds the same tokenizer."""
        return self._json(self._payload)

    def _json(self, payload: Mapping[str, str]) -> str:
        special = {name: self.special[name] for name in SPECIAL_NAMES}
        fields = {"format": 1, "vocab_size": self.vocab_size, "special": special}
        fields |= {**self._identity, **payload}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The tokenizer of `to_json`, or of a file of the `tokenizers` library."""
        try:
            fields: dict[str, Any] = json.loads(text)
            if "model" in fields and "format" not in fields:
                return cls._of_library(text)
            self = cls._of_fields(fields)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file leads to
            raise UserError(f"not a tokenizer of this program: {error!r}") from error
        if {**json.loads(self.to_json()), **self._payload} != {**fields, **self._payload}:
            maker = f"tiktoken's {fields['encoding']!r}" if "encoding" in fields else "this layout"
            raise UserError(f"the tokenizer was not made with {maker}: the ids differ")
        return self

    @classmethod
    def _of_fields(cls, fields: Mapping[str, Any]) -> Self:
        if "file" in fields:
            return cls._of_library(_unpacked(fields, "file"))
        if "ranks" in fields:
            lines = (line.split() for line in _unpacked(fields, "ranks").splitlines())
            ranks = {bytes.fromhex(text): int(token_id) for text, token_id in lines}
            return cls._of_ranks(
                fields["encoding"], fields["pat_str"], ranks, fields["other_special"]
            )
        if "encoding" in fields:  # made before ranks were kept: look them up
            self = cls.named(fields["encoding"])
            self._payload = {}
            self._identity = {name: self._identity[name] for name in ("encoding", "ranks_sha256")}
            return self
        return cls(fields["vocab_size"], fields["ngrams"])

    def save(self, path: str | os.PathLike[str]) -> None:
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The tokenizer of a file; UserError names one that is missing or holds none."""
        with system_errors("load the tokenizer", Path(path)):
            raw = Path(path).read_bytes()
        try:
            return cls.from_json(raw.decode())
        except ValueError as error:
            raise UserError(f"cannot load the tokenizer {path}: {error}") from error

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of all that decides the ids: two tokenizers with one hash give the same ids."""
        return _sha256(self._json({}))


def _completed(by_id: Mapping[int, bytes], special: Mapping[str, int]) -> dict[str, int]:
    """The special tokens, with a reserved one for every gap and further ids for missing marks."""
    taken = by_id.keys() | special.values()
    if max(taken) >= MAX_IDS:  # a damaged file must not fill the memory with reserved tokens
        raise UserError(f"not a vocabulary: an id of {max(taken)}, expected less than {MAX_IDS:,}")
    gaps = (n for n in range(max(taken) + 1) if n not in taken)
    completed = {**special, **{f"<|reserved_{n}|>": n for n in gaps}}
    for name in SPECIAL_NAMES:
        completed.setdefault(name, len(by_id) + len(completed))
    return completed


def _not_exact(reason: str) -> UserError:
    return UserError(
        f"the tokenizer does not give back every text exactly: {reason}; expected a byte-level BPE"
        " without a normalizer, as of GPT-2 or Llama 3"
    )


def byte_alphabet() -> str:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(value if value in printable else next(others)) for value in range(256))


def _byte_ids(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _tiktoken_ids(pat_str: str, ranks: dict[bytes, int]) -> Callable[[str], NDArray[Any]]:
    encoding = tiktoken.Encoding(
        "inputcodes", pat_str=pat_str, mergeable_ranks=ranks, special_tokens={}
    )
    return functools.partial(encoding.encode_to_numpy, disallowed_special=())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _unpacked(fields: Mapping[str, Any], name: str) -> str:
    text = zlib.decompress(base64.b64decode(fields[name], validate=True)).decode()
    if _sha256(text) != fields[f"{name}_sha256"]:
        raise UserError(f"not a whole tokenizer: its {name} were altered")
    return text
