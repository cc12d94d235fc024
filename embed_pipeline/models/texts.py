"""Texts as a model reads them: cut to what it takes in, or split into chunks of that length."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import numpy as np
from tokenizers import Encoding, Tokenizer

from embed_pipeline.errors import ModelError
from embed_pipeline.models.protocol import (
    LocalEncoder,
    LongTextVectors,
    TextVectors,
    Tokens,
    Vectors,
)

TEXTS_AT_ONCE = 64


def encode_texts(encoder: LocalEncoder, texts: Sequence[str]) -> TextVectors:
    """Encode what fits the model of each text. Raises ModelError for a vector not finite."""
    tokens, truncated = encoder.reader.cut(texts)
    vectors = _finite(encoder, encoder.encode_tokens(tokens))
    return TextVectors(vectors, truncated, [each.length for each in tokens])


def encode_long_texts(encoder: LocalEncoder, texts: Sequence[str]) -> LongTextVectors:
    """Encode all of each text: the mean of its chunks' vectors, weighted by their lengths.

    Raises ModelError for a vector not finite.
    """
    split = encoder.reader.split(texts)
    vectors = _finite(encoder, encoder.encode_tokens(list(chain.from_iterable(split))))
    ends = np.cumsum([0, *map(len, split)])
    lengths = [[chunk.length for chunk in chunks] for chunks in split]
    means = np.empty((len(texts), encoder.card.dimension), np.float32)
    for row, (first, end) in enumerate(pairwise(ends)):
        means[row] = _mean(vectors[first:end], lengths[row])
    return LongTextVectors(_finite(encoder, means), lengths)


def _mean(vectors: Vectors, weights: Sequence[int]) -> Vectors:
    if len(vectors) == 1:
        return np.asarray(vectors[0])
    mean = np.average(vectors, axis=0, weights=weights)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def _finite(encoder: LocalEncoder, vectors: Vectors) -> Vectors:
    if not np.isfinite(vectors).all():
        raise ModelError(f"{encoder.card.name}: gives no finite vector for a text; fetch it again")
    return vectors


class TextReader:
    """A model's tokenizer. context: tokens that the model takes in, with the marks of begin and end.

    lower_case: the model was trained so, and its tokenizer does not see to it.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, *, lower_case: bool) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._lower_case = lower_case
        marked = tokenizer.encode("a")
        own = [at for at, mark in enumerate(marked.special_tokens_mask) if not mark]
        self._begin, self._end = marked.ids[: own[0]], marked.ids[own[-1] + 1 :]
        self._room = context - len(self._begin) - len(self._end)

    def cut(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """What fits the model of each text, and whether that is not all of it."""
        every = [read.ids for _, read in self._read(texts)]
        truncated = [len(ids) > self._room for ids in every]
        return [self._marked(ids[: self._room]) for ids in every], truncated

    def split(self, texts: Sequence[str]) -> list[list[Tokens]]:
        """Each text in as many parts as it takes, at least one; words stay whole where they can."""
        return [self._chunks(text, read) for text, read in self._read(texts)]

    def _read(self, texts: Sequence[str]) -> list[tuple[str, Encoding]]:
        plain = [text.encode(errors="replace").decode() for text in texts]  # no lone surrogates
        if self._lower_case:
            plain = [text.lower() for text in plain]
        read = self._tokenizer.encode_batch(plain, add_special_tokens=False)
        return list(zip(plain, read, strict=True))

    def _chunks(self, text: str, read: Encoding) -> list[Tokens]:
        parts = _parts(_begins_word(text, read), self._room)
        return [self._marked(read.ids[part]) for part in parts]

    def _marked(self, ids: list[int]) -> Tokens:
        return Tokens([*self._begin, *ids, *self._end], len(ids))


def _begins_word(text: str, read: Encoding) -> list[bool]:
    """Of each token, whether a word of the text begins with it.

    Tokenizers differ in whether a space is in a token, and have words of their own kinds.
    """
    begins, before = [], -1
    for start, _ in read.offsets:
        around = text[max(0, start - 1) : start + 1]
        begins.append(start != before and any(map(str.isspace, around)))
        before = start
    return begins


def _parts(begins_word: Sequence[bool], room: int) -> Iterator[slice]:
    """Parts of at most `room` tokens; inside a word only where it is longer than that."""
    start = 0
    while start + room < len(begins_word):
        last = start + room
        end = next((at for at in range(last, start, -1) if begins_word[at]), last)
        yield slice(start, end)
        start = end
    yield slice(start, len(begins_word))
