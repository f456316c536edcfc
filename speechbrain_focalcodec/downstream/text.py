"""Text to pieces and back: characters, or what sentencepiece has learnt."""

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

#: What pieces may be: sentencepiece's own names.
KINDS = ("char", "unigram", "bpe")
_MAX_BYTES = 2**26  # of a model of sentencepiece; most are below 2**20
#: The number that stands for what no piece covers.
UNKNOWN = 0


def normalise(text: str) -> str:
    """Upper case, one blank between words: as LibriSpeech writes.

    Arguments
    ---------
    text : str
        Any text.

    Returns
    -------
    str
        The text to train on and to score against.

    Example
    -------
    >>> normalise(" Go  on ")
    'GO ON'
    """
    return " ".join(text.upper().split())


class TextTokenizer:
    """Pieces of text, by sentencepiece.

    Numbers 0 to `size` - 1; 0 is what no piece covers. What else a task
    needs (CTC's blank, begin and end) comes after them.

    Arguments
    ---------
    model : bytes
        A model of sentencepiece.

    Raises
    ------
    CheckpointError
        If it is none.

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
            # A damaged one may load: its text may not be UTF-8.
            self._pieces = [
                self._processor.id_to_piece(i) for i in range(self.size)
            ]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"this is no model of sentencepiece: {error}"
            ) from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: str = "char",
        size: int | None = None,
        at_most: bool = False,
    ) -> "TextTokenizer":
        """Learn pieces.

        Arguments
        ---------
        texts : iterable of str
            Transcripts of the training data.
        kind : str
            ``char``, ``unigram`` or ``bpe``.
        size : int, optional
            How many pieces; characters are all there are.
        at_most : bool
            Whether to learn fewer where the texts have not so many.

        Returns
        -------
        TextTokenizer
            The tokenizer.

        Raises
        ------
        ConfigError
            If there is no such kind, or the texts have not so many pieces.
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
        # One more for the mark of words, one for the unknown.
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
                # Nothing of begin, end and padding.
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
        """Read one that was saved.

        Arguments
        ---------
        path : str or Path
            The file.

        Returns
        -------
        TextTokenizer
            The tokenizer.

        Raises
        ------
        CheckpointError
            If it is missing or damaged.
        """
        try:
            return cls(read_file(path, _MAX_BYTES))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write it.

        Arguments
        ---------
        path : str or Path
            The file.
        """
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model)

    @property
    def size(self) -> int:
        """How many pieces there are."""
        return self._processor.get_piece_size()

    @property
    def pieces(self) -> list[str]:
        """All pieces, where "▁" begins a word."""
        return list(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Text to pieces.

        Arguments
        ---------
        text : str
            Any text.

        Returns
        -------
        list of int
            Numbers of pieces.
        """
        return self._processor.encode(normalise(text))

    def decode(self, pieces: Sequence[int]) -> str:
        """Pieces to text.

        Arguments
        ---------
        pieces : sequence of int
            Numbers of pieces.

        Returns
        -------
        str
            The text.
        """
        return self._processor.decode([int(piece) for piece in pieces])
