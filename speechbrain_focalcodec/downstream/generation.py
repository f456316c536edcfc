"""Generates tokens with a language model, in batches or as a stream."""

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
    """Parameters that select the next token.

    Arguments
    ---------
    temperature : float
        Divides the scores; 0 takes the likeliest token.
    top_p : float
        Sample from the smallest set of tokens with this total probability.
    max_repeats : int, optional
        Maximum number of times that a token is repeated, against loops.
        Silence repeats tokens too; choose it by the token rate.
    penalty : float
        Repetition penalty for tokens within `window`; above 1 they become
        less likely.
    window : int
        Number of past tokens that `penalty` considers.
    min_tokens : int
        Minimum number of tokens before END.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_repeats: int | None = None
    penalty: float = 1.0
    window: int = 16
    min_tokens: int = 1

    def __post_init__(self) -> None:
        repeats = self.max_repeats
        for name, valid, rule in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "within (0, 1]"),
            ("max_repeats", repeats is None or repeats > 0, "1 or more"),
            ("penalty", self.penalty > 0, "positive"),
            ("window", self.window > 0, "1 or more"),
            ("min_tokens", self.min_tokens >= 0, "0 or more"),
        ):
            if not valid:
                raise ValueError(
                    f"{name} must be {rule}, got {getattr(self, name)}"
                )

    def choose(
        self, logits: torch.Tensor, past: torch.Tensor, draws: torch.Tensor
    ) -> torch.Tensor:
        """Select the next token of each utterance, int64 [B].

        `logits` are scores [B, V] whose last class is END, `past` the tokens so
        far, int64 [B, N], `draws` one random number per utterance in [0, 1).
        """
        scores = self._penalised(logits.float(), past)
        if self.temperature == 0:
            return scores.argmax(-1)
        scores = scores / self.temperature
        if self.top_p < 1:
            library = import_extra("transformers", "tts")
            scores = library.TopPLogitsWarper(self.top_p)(past, scores)
        # One random number per utterance makes draws independent of the
        # batch.
        bounds = scores.softmax(-1).cumsum(-1)
        points = draws.to(bounds)[:, None] * bounds[:, -1:]
        chosen = torch.searchsorted(bounds, points, right=True)[:, 0]
        return chosen.clamp(max=scores.shape[1] - 1)

    def _penalised(
        self, scores: torch.Tensor, past: torch.Tensor
    ) -> torch.Tensor:
        count = past.shape[1]
        if self.penalty != 1 and count:
            library = import_extra("transformers", "tts")
            penalise = library.RepetitionPenaltyLogitsProcessor(
                float(self.penalty)
            )
            scores = penalise(past[:, -self.window :], scores)
        if count < self.min_tokens:
            scores = scores.clone()
            scores[:, -1] = -torch.inf
        if self.max_repeats is not None and count >= self.max_repeats:
            last = past[:, -1:]
            loops = (past[:, -self.max_repeats :] == last).all(1, keepdim=True)
            score = scores.gather(1, last).masked_fill(loops, -torch.inf)
            scores = scores.scatter(1, last, score)
        return scores


@dataclass(frozen=True)
class Generation:
    """Tokens of an utterance, int64 [N], without END.

    `ended` is False if the utterance was cut at the maximum length.
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
    """Generate tokens for a batch of texts.

    The tokens of an utterance depend on its text, voice and seed, not on the
    rest of the batch (up to rounding).

    Arguments
    ---------
    model : TokenLanguageModel
        In eval mode.
    text : torch.Tensor
        Pieces, int64 [B, T].
    text_lengths : torch.Tensor
        Absolute lengths, int64 [B].
    speaker : torch.Tensor, optional
        Embeddings of voices [B, speaker_dim].
    max_tokens : int
        Maximum number of tokens of an utterance.
    sampling : Sampling, optional
        Sampling parameters; by default from the model's distribution.
    seed : int or sequence of int
        One seed for all utterances, or one each.

    Returns
    -------
    list of Generation
        One per utterance.

    Raises
    ------
    ValueError
        If the model is in training mode, or an argument is out of range.
    """
    steps = _steps(
        model, text, text_lengths, speaker, max_tokens, sampling, seed
    )
    toks = torch.stack(list(steps), dim=1)
    ends = toks == model.end
    # Without END all tokens are kept, except the extra one.
    counts = torch.where(ends.any(1), ends.long().argmax(1), max_tokens)
    return [
        Generation(row[:count].clone(), ended)
        for row, count, ended in zip(
            toks, counts.tolist(), ends.any(1).tolist(), strict=True
        )
    ]


class TokenStream(Iterator[torch.Tensor]):
    """Iterator over chunks of an utterance's tokens, int64 [N]."""

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
        #: True once END was generated; False after the last chunk means that
        #: the utterance was cut.
        self.ended = False

    def __next__(self) -> torch.Tensor:
        chunk = list(itertools.islice(self._toks, self._chunk_tokens))
        if len(chunk) < self._chunk_tokens and not self.ended:
            # The token after the maximum.
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
    """Generate one utterance in chunks of `chunk_tokens` tokens.

    `text` is [T] and `speaker` [speaker_dim]; other arguments, the tokens and
    errors are those of :func:`generate`. A causal codec decodes each chunk at
    once with
    :class:`~speechbrain_focalcodec.streaming.sessions.StreamingDecoder`.
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
    """Check the arguments and iterate over tokens [B] until all have ended.

    Utterances that have ended repeat END. After `max_tokens` one more step
    shows whether END would have followed.
    """
    if model.training:
        raise ValueError("model is in training mode: call model.eval() first")
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
        draws = torch.stack(
            [torch.rand((), generator=generator) for generator in generators]
        ).to(logits.device)
        toks = sampling.choose(logits, past, draws)
        toks = toks.masked_fill(ended, model.end)
        ended = ended | (toks == model.end)
        yield toks
        if count == max_tokens or bool(ended.all()):
            return
        past = torch.cat([past, toks[:, None]], dim=1)
        logits = model.step(toks, state)
