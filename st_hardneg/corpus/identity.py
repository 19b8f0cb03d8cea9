"""When two texts are the same text, and what stands for a text in random draws."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from st_hardneg.corpus.digests import Digests, digests_of_bytes

# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt: characters that are there and cannot be seen.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


def same_text_key(text: str) -> bytes:
    r"""Digest that two texts share when a reader would call them the same text.

    Source: NFKC_Casefold of the Unicode Standard (section 3.13), which leaves out invisible characters and normalises
    once more after folding case; then runs of whitespace become one space.

    Example:
        >>> same_text_key("  Straße\n 1") == same_text_key("STRASSE 1")
        True
        >>> same_text_key("soft\u00adhyphen") == same_text_key("softhyphen")
        True
    """
    folded = _casefolded(text)
    # Most texts are spaced by single spaces already, and to see that takes a tenth of splitting and joining them.
    if "  " in folded or not folded.isprintable() or folded[:1] == " " or folded[-1:] == " ":
        folded = " ".join(folded.split())
    return text_digest(folded)


def _casefolded(text: str) -> str:
    if text.isascii():
        return text.lower()
    for _ in range(3):  # what folding yields may normalise further
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold())
        if folded == text:
            break
        text = folded
    return text


def text_digest(text: str) -> bytes:
    """Digest that only equal texts share.

    Source: XXH3, https://xxhash.com, 128 bits; thirty times as fast as a cryptographic digest, and here nobody gains by a
    collision. Nothing that is kept from one version to the next depends on it but the draws.
    """
    # 16 bytes instead of the text keep a dictionary of millions of texts small.
    return xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


IDENTITIES: dict[str, Callable[[str], bytes]] = {"normalized": same_text_key, "exact": text_digest}
"""What ``MiningConfig.identity`` may be: from a text to the key that the same texts share."""


def draw_keys(identity_keys: Digests) -> npt.NDArray[np.int64]:
    """Return what stands for texts in random draws: 63 bits of each one's identity key, int64 of shape ``(m,)``."""
    return (identity_keys[:, 0] >> np.uint64(1)).astype(np.int64)


def text_digests(texts: pa.Array) -> Digests:
    """Return :func:`text_digest` of every text of an Arrow array of strings, taken where the texts lie."""
    data, offsets = _bytes_of(texts)
    view, bounds = data.data, offsets.tolist()
    return digests_of_bytes([xxh3_128_digest(view[start:stop]) for start, stop in pairwise(bounds)])


def identity_keys(texts: pa.Array, identity: str) -> Digests:
    """Return the key of every text of an Arrow array of strings, under a kind of identity.

    Texts in ASCII that are spaced by single spaces need nothing but lower case, which is done for all of them at once.
    """
    if IDENTITIES[identity] is not same_text_key:
        return text_digests(texts)
    keys = text_digests(pc.ascii_lower(texts))
    places = _not_plain(texts)
    keys[places] = digests_of_bytes([same_text_key(texts[place].as_py()) for place in places.tolist()])
    return keys


def _not_plain(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Return the places of texts that hold more than printable ASCII, or spaces at an end or beside each other."""
    data, offsets = _bytes_of(texts)
    starts, stops = offsets[:-1], offsets[1:]
    some = data[offsets[0] : offsets[-1]]
    is_space = some == 32
    odd = (some - np.uint8(32)) > 94
    odd[1:] |= is_space[1:] & is_space[:-1]
    is_odd = np.zeros(len(texts), dtype=bool)
    is_odd[np.searchsorted(offsets, np.flatnonzero(odd) + offsets[0], side="right") - 1] = True
    filled = np.flatnonzero(stops > starts)
    is_odd[filled] |= (data[starts[filled]] == 32) | (data[stops[filled] - 1] == 32)
    return np.flatnonzero(is_odd)


def _bytes_of(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the bytes of an array of strings, and where each text starts and the last one ends; null is empty."""
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, data = texts.buffers()
    if offsets is None or not len(texts):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    bounds = np.frombuffer(offsets, dtype=width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data if data is not None else b"", dtype=np.uint8), bounds
