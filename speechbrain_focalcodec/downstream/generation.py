"""Tokens from a language model: greedily or drawn, whole or as they come."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from speechbrain_focalcodec.downstream.language_model import TokenLanguageModel
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = [
    "Generation",
    "Sampling",
    "TokenStream",
    "generate",
    "generate_stream",
]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Arguments
    ---------
    temperature : float
        Below 1 the likely become likelier; 0 takes the likeliest.
    top_p : float
        Draw from the fewest tokens that have this probability together.
    max_repeats : int, optional
        Times that a token may come in a row: a guard against a model that
        hangs. Silence may last; choose it by the token rate.
    penalty : float
        Above 1, what came within `window` becomes less likely.
    window : int
        Tokens that `penalty` looks back.
    min_tokens : int
        Tokens that come before an end at least.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> Sampling(top_p=0.0)
    Traceback (most recent call last):
    ...
    ValueError: top_p must be within (0, 1], got 0.0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_repeats: int | None = None
    penalty: float = 1.0
    window: int = 16
    min_tokens: int = 1

    def __post_init__(self) -> None:
        repeats = self.max_repeats
        for name, right, what in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "within (0, 1]"),
            ("max_repeats", repeats is None or repeats > 0, "1 or more"),
            ("penalty", self.penalty > 0, "positive"),
            ("window", self.window > 0, "1 or more"),
            ("min_tokens", self.min_tokens >= 0, "0 or more"),
        ):
            if not right:
                raise ValueError(
                    f"{name} must be {what}, got {getattr(self, name)}"
                )

    def choose(
        self, logits: torch.Tensor, past: torch.Tensor, draws: torch.Tensor
    ) -> torch.Tensor:
        """Choose each utterance's next token.

        Arguments
        ---------
        logits : torch.Tensor
            Scores [B, V]; the last class is the end.
        past : torch.Tensor
            All tokens so far, int64 [B, N].
        draws : torch.Tensor
            A random number each, in [0, 1), float [B].

        Returns
        -------
        torch.Tensor
            int64 [B].

        Example
        -------
        >>> past, draws = torch.tensor([[1, 1]]), torch.tensor([0.5])
        >>> logits = torch.tensor([[0.0, 9.0, 1.0, 0.0]])
        >>> Sampling(temperature=0).choose(logits, past, draws)
        tensor([1])
        >>> Sampling(temperature=0, max_repeats=2).choose(logits, past, draws)
        tensor([2])
        """
        scores = self._guarded(logits.float(), past)
        if self.temperature == 0:
            return scores.argmax(-1)
        scores = scores / self.temperature
        if self.top_p < 1:
            library = import_extra("transformers", "tts")
            scores = library.TopPLogitsWarper(self.top_p)(past, scores)
        # One number an utterance, so that a batch draws as each alone.
        bounds = scores.softmax(-1).cumsum(-1)
        points = draws.to(bounds)[:, None] * bounds[:, -1:]
        chosen = torch.searchsorted(bounds, points, right=True)[:, 0]
        return chosen.clamp(max=scores.shape[1] - 1)

    def _guarded(
        self, scores: torch.Tensor, past: torch.Tensor
    ) -> torch.Tensor:
        count = past.shape[1]
        if self.penalty != 1 and count:
            library = import_extra("transformers", "tts")
            punish = library.RepetitionPenaltyLogitsProcessor(
                float(self.penalty)
            )
            scores = punish(past[:, -self.window :], scores)
        if count < self.min_tokens:
            scores = scores.clone()
            scores[:, -1] = -torch.inf
        if self.max_repeats is not None and count >= self.max_repeats:
            last = past[:, -1:]
            hangs = (past[:, -self.max_repeats :] == last).all(1, keepdim=True)
            score = scores.gather(1, last).masked_fill(hangs, -torch.inf)
            scores = scores.scatter(1, last, score)
        return scores


@dataclass(frozen=True)
class Generation:
    """What was generated for an utterance.

    Arguments
    ---------
    toks : torch.Tensor
        int64 [N], without the end.
    ended : bool
        Whether the model ended it; otherwise it was cut.
    """

    toks: torch.Tensor
    ended: bool


def generate(
    model: TokenLanguageModel,
    text: torch.Tensor,
    text_lengths: torch.Tensor,
    speaker: torch.Tensor | None = None,
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
) -> list[Generation]:
    """Generate the tokens of a batch.

    An utterance's tokens depend on its text, voice and seed, and not on what
    else is in the batch (but for what rounding decides).

    Arguments
    ---------
    model : TokenLanguageModel
        In eval mode.
    text : torch.Tensor
        Pieces, int64 [B, T].
    text_lengths : torch.Tensor
        int64 [B].
    speaker : torch.Tensor, optional
        Embeddings of voices [B, speaker_dim].
    max_tokens : int
        Most tokens of an utterance.
    sampling : Sampling, optional
        How tokens are chosen; by default drawn as the model has it.
    seed : int or sequence of int
        Of all utterances, or of each. For several tries at one text, repeat
        the text and give seeds.

    Returns
    -------
    list of Generation
        One an utterance.

    Raises
    ------
    ValueError
        If the model is being trained, or an argument is out of range.

    Example
    -------
    >>> model = TokenLanguageModel(
    ...     30, 16, dim=32, num_layers=1, ffn_dim=64
    ... ).eval()
    >>> text = torch.tensor([[3, 1, 4], [1, 5, 0]])
    >>> both = generate(model, text, torch.tensor([3, 2]), max_tokens=5)
    >>> one = generate(
    ...     model, text[1:, :2], torch.tensor([2]), max_tokens=5
    ... )
    >>> both[1].toks.equal(one[0].toks)
    True
    """
    steps = _steps(
        model, text, text_lengths, speaker, max_tokens, sampling, seed
    )
    toks = torch.stack(list(steps), dim=1)
    ends = toks == model.end
    # The first end; where there is none all, but for the one too many.
    counts = torch.where(ends.any(1), ends.long().argmax(1), max_tokens)
    return [
        Generation(row[:count].clone(), ended)
        for row, count, ended in zip(
            toks, counts.tolist(), ends.any(1).tolist(), strict=True
        )
    ]


class TokenStream(Iterator[torch.Tensor]):
    """Chunks of an utterance's tokens, as they are made.

    Arguments
    ---------
    steps : iterator of torch.Tensor
        Tokens, int64 [1] each.
    end : int
        The class that ends it.
    max_tokens : int
        Most tokens.
    chunk_tokens : int
        Tokens of a chunk; the last one may have fewer.

    Example
    -------
    >>> steps = iter(torch.tensor([[3], [1], [2], [16]]))
    >>> stream = TokenStream(steps, 16, max_tokens=9, chunk_tokens=2)
    >>> [chunk.tolist() for chunk in stream], stream.ended
    ([[3, 1], [2]], True)
    """

    def __init__(
        self,
        steps: Iterator[torch.Tensor],
        end: int,
        max_tokens: int,
        chunk_tokens: int,
    ):
        self._toks = itertools.islice(self._until_end(steps, end), max_tokens)
        self._rest = steps
        self._end = end
        self._chunk_tokens = chunk_tokens
        #: Whether the model has ended the utterance. False after the last
        #: chunk says that it was cut.
        self.ended = False

    def __next__(self) -> torch.Tensor:
        chunk = list(itertools.islice(self._toks, self._chunk_tokens))
        if len(chunk) < self._chunk_tokens and not self.ended:
            # What would have come after the most that are wanted.
            self.ended = int(next(self._rest, -1)) == self._end
        if not chunk:
            raise StopIteration
        return torch.cat(chunk)

    def _until_end(
        self, steps: Iterator[torch.Tensor], end: int
    ) -> Iterator[torch.Tensor]:
        for toks in steps:
            if int(toks) == end:
                self.ended = True
                return
            yield toks


def generate_stream(
    model: TokenLanguageModel,
    text: torch.Tensor,
    speaker: torch.Tensor | None = None,
    *,
    max_tokens: int,
    chunk_tokens: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> TokenStream:
    """Generate one utterance's tokens and give them as they are made.

    They are those of :func:`generate`. With a causal codec each chunk can be
    heard at once, by
    :class:`~speechbrain_focalcodec.streaming.sessions.StreamingDecoder`.

    Arguments
    ---------
    model : TokenLanguageModel
        In eval mode.
    text : torch.Tensor
        Pieces, int64 [T].
    speaker : torch.Tensor, optional
        Embedding of the voice [speaker_dim].
    max_tokens : int
        Most tokens.
    chunk_tokens : int
        Tokens of a chunk.
    sampling : Sampling, optional
        How tokens are chosen.
    seed : int
        As for :func:`generate`.

    Returns
    -------
    TokenStream
        Iterate over it; then `ended` says whether the model came to an end.

    Raises
    ------
    ValueError
        If the model is being trained, or an argument is out of range.

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> from speechbrain_focalcodec.streaming.sessions import StreamingDecoder
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> model = TokenLanguageModel(
    ...     30, codec.codebook_size, dim=32, num_layers=1, ffn_dim=64
    ... ).eval()
    >>> text = torch.tensor([3, 1, 4])
    >>> decoder = StreamingDecoder(codec)
    >>> for toks in generate_stream(
    ...     model, text, max_tokens=8, chunk_tokens=4
    ... ):
    ...     sig = decoder.push(toks)
    >>> len(sig)
    1920
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be positive, got {chunk_tokens}")
    steps = _steps(
        model,
        text[None],
        torch.tensor([len(text)], device=text.device),
        None if speaker is None else speaker[None],
        max_tokens,
        sampling,
        seed,
    )
    return TokenStream(steps, model.end, max_tokens, chunk_tokens)


def _steps(
    model: TokenLanguageModel,
    text: torch.Tensor,
    text_lengths: torch.Tensor,
    speaker: torch.Tensor | None,
    max_tokens: int,
    sampling: Sampling | None,
    seed: int | Sequence[int],
) -> Iterator[torch.Tensor]:
    """Check, and give each step's tokens [B] until all have ended.

    Utterances that have ended repeat their end. After `max_tokens` there is
    one step more, which says whether an end would have come.
    """
    if model.training:
        raise ValueError("model is being trained: call model.eval() first")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be positive, got {max_tokens}")
    seeds = [seed] * len(text) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(text):
        raise ValueError(
            f"seed has {len(seeds)} numbers for {len(text)} utterances"
        )
    return _run(
        model,
        (text, text_lengths, speaker),
        max_tokens,
        sampling or Sampling(),
        [torch.Generator().manual_seed(number) for number in seeds],
    )


@torch.no_grad()
def _run(
    model: TokenLanguageModel,
    prompts: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    max_tokens: int,
    sampling: Sampling,
    generators: list[torch.Generator],
) -> Iterator[torch.Tensor]:
    logits, state = model.start(*prompts)
    past = prompts[0][:, :0]
    ended = torch.zeros(len(past), dtype=torch.bool, device=past.device)
    for count in range(max_tokens + 1):
        own = [torch.rand((), generator=each) for each in generators]
        draws = torch.stack(own).to(logits.device)
        toks = sampling.choose(logits, past, draws)
        toks = toks.masked_fill(ended, model.end)
        ended = ended | (toks == model.end)
        yield toks
        if count == max_tokens or bool(ended.all()):
            return
        past = torch.cat([past, toks[:, None]], dim=1)
        logits = model.step(toks, state)
