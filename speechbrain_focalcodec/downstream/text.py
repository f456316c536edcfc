"""Text tokenizers: characters or sentencepiece models."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)
from speechbrain_focalcodec.utils.files import atomic_path, read_file

__all__ = ["KINDS", "UNKNOWN", "TextTokenizer", "normalise"]

#: Kinds of pieces, as sentencepiece calls them.
KINDS = ("char", "unigram", "bpe")
_MAX_BYTES = 2**26  # of a model of sentencepiece; most are below 2**20
#: Number of the unknown piece.
UNKNOWN = 0


def normalise(text: str) -> str:
    """Upper-case text with single spaces, as in LibriSpeech.

    Example
    -------
    >>> normalise(" Go  on ")
    'GO ON'
    """
    return " ".join(text.upper().split())


class TextTokenizer:
    """A sentencepiece model.

    Piece 0 stands for unknown text. Tasks put further classes (CTC's blank,
    begin and end) after the pieces.

    Arguments
    ---------
    model : bytes
        A serialised sentencepiece model.

    Raises
    ------
    CheckpointError
        If it is not one.

    Example
    -------
    >>> tokenizer = TextTokenizer.train(["GO ON", "NO"], "char")
    >>> pieces = tokenizer.encode("NO GO")
    >>> tokenizer.decode(pieces), len(pieces)
    ('NO GO', 6)
    """

    def __init__(self, model: bytes):
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=model
            )
            # A damaged model may load with text that is not UTF-8.
            self._pieces = [
                self._processor.id_to_piece(i) for i in range(self.size)
            ]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"this is not a sentencepiece model: {error}"
            ) from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: str = "char",
        size: int | None = None,
        at_most: bool = False,
    ) -> "TextTokenizer":
        """Train a tokenizer.

        Arguments
        ---------
        texts : iterable of str
            Transcripts of the training data.
        kind : str
            ``char``, ``unigram`` or ``bpe``.
        size : int, optional
            Number of pieces; ignored for characters.
        at_most : bool
            Accept fewer pieces if the texts do not contain `size` of them.

        Returns
        -------
        TextTokenizer
            The tokenizer.

        Raises
        ------
        ConfigError
            If the kind is unknown, or the texts do not contain `size` pieces.
        DataError
            If there is no text.
        """
        if kind not in KINDS:
            raise ConfigError(f"tokenizer: {kind!r} is none of {KINDS}")
        texts = [text for text in map(normalise, texts) if text]
        if not texts:
            raise DataError(
                "there is no text to learn pieces from: the training data "
                "has no transcripts"
            )
        # Two more for the start of words and for unknown text.
        fewest = len(set("".join(texts)) - {" "}) + 2
        if kind == "char":
            size = fewest
        elif size is None:
            raise ConfigError(f"tokenizer: {kind} needs a number of pieces")
        buffer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=buffer,
                model_type=kind,
                vocab_size=size,
                character_coverage=1.0,
                hard_vocab_limit=not at_most,
                # No pieces for begin and end.
                bos_id=-1,
                eos_id=-1,
                unk_id=UNKNOWN,
                normalization_rule_name="identity",
                minloglevel=2,
            )
        except RuntimeError as error:
            ask = f"{fewest} at least" if size < fewest else "fewer"
            raise ConfigError(
                f"tokenizer: {len(texts)} texts do not make {size} pieces of "
                f"the kind {kind} ({str(error).strip()}): ask for {ask}"
            ) from error
        return cls(buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Load a saved tokenizer.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged.
        """
        try:
            return cls(read_file(path, _MAX_BYTES))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the model to a file."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model)

    @property
    def size(self) -> int:
        """Number of pieces."""
        return self._processor.get_piece_size()

    @property
    def pieces(self) -> list[str]:
        """All pieces; "▁" marks the start of a word."""
        return list(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's pieces."""
        return self._processor.encode(normalise(text))

    def decode(self, pieces: Sequence[int]) -> str:
        """Text of pieces."""
        return self._processor.decode([int(piece) for piece in pieces])
