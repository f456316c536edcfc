"""Causal language model of speech tokens, conditioned on text and a voice.

The backbone is the Llama of ``transformers`` (extra ``tts``): RMSNorm,
rotary positions, SwiGLU and grouped-query attention.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_focalcodec.downstream.packing import (
    Packing,
    additive_mask,
    spans,
)
from speechbrain_focalcodec.downstream.token_scores import (
    CodeMixture,
    TokenScores,
    TokenSoftmax,
)
from speechbrain_focalcodec.modules.masking import length_mask
from speechbrain_focalcodec.modules.token_embedding import TokenEmbedding
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["DecodingState", "TokenLanguageModel"]

# Standard deviation of initial embeddings and output weights, as in Llama.
INITIAL_STD = 0.02


@dataclass
class DecodingState:
    """State of a batch between tokens.

    `cache` holds keys and values of the backbone, `valid` is False for padding
    in it, bool [B, K], and `positions` are of the next input, int64 [B].
    """

    cache: Any
    valid: torch.Tensor
    positions: torch.Tensor


class TokenLanguageModel(nn.Module):
    """Predicts tokens autoregressively from text and a voice.

    A sequence is ``[voice] [pieces of text] [BEGIN] [tokens] [END]``; tokens
    and END are the targets. The vectors of tokens are initialised with their
    codes, see
    :class:`~speechbrain_focalcodec.modules.token_embedding.TokenEmbedding`.

    Arguments
    ---------
    num_pieces : int
        Number of pieces of text.
    codebook_size : int
        Number of codes, a power of two. END is the class after them.
    speaker_dim : int, optional
        Size of a voice's embedding; without it, sequences start with the text.
    dim : int
        Size of the hidden vectors.
    num_layers : int
        Number of layers.
    num_heads : int
        Number of attention heads.
    num_kv_heads : int
        Number of heads for keys and values, shared by the attention heads.
    ffn_dim : int
        Size of the feed-forward layers.
    dropout : float
        Dropout of the input vectors. The attention has none, because PyTorch's
        fast attention on CPUs does not support it.
    token_dropout : float
        Share of the input tokens hidden in training, so that the model uses
        the text instead of memorising tokens of a small data set.
    aligned : bool
        Spread the positions of the text evenly over the tokens' positions, so
        that a token is near its text. Helps with little data (compare the
        progress-monitoring positions of VoiceStar, Peng et al., 2025). `pace`
        predicts the number of tokens.
    freeze : bool
        Do not train the vectors of tokens.
    tied_to_codes : bool
        Train a linear function of the codes instead of one vector per token,
        for large codebooks.
    mixture : int, optional
        Use a
        :class:`~speechbrain_focalcodec.downstream.token_scores.CodeMixture`
        with this number of components as output layer, for little data and
        large codebooks. By default it is a softmax over the tokens.

    Raises
    ------
    ImportError
        If ``transformers`` is not installed.
    ValueError
        If `dim` is not a multiple of twice `num_heads`, or `num_heads` not of
        `num_kv_heads`.

    Example
    -------
    >>> model = TokenLanguageModel(
    ...     30, 8192, speaker_dim=5, dim=32, num_layers=1, ffn_dim=64
    ... )
    >>> text, text_lengths = torch.zeros(2, 7).long(), torch.tensor([7, 4])
    >>> toks, tok_lengths = torch.ones(2, 9).long(), torch.tensor([9, 6])
    >>> scores, targets = model(
    ...     text, text_lengths, toks, tok_lengths, torch.randn(2, 5)
    ... )
    >>> scores.log_prob(targets).shape  # of each token and END
    torch.Size([17])
    """

    pace: torch.Tensor

    def __init__(
        self,
        num_pieces: int,
        codebook_size: int,
        speaker_dim: int | None = None,
        dim: int = 512,
        num_layers: int = 12,
        num_heads: int = 4,
        num_kv_heads: int = 1,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        aligned: bool = False,
        freeze: bool = False,
        tied_to_codes: bool = False,
        mixture: int | None = None,
    ):
        super().__init__()
        # Rotary positions rotate pairs of values.
        if dim % (2 * num_heads) or num_heads % num_kv_heads:
            raise ValueError(
                f"dim must be a multiple of twice num_heads, and that one of "
                f"num_kv_heads, got {dim}, {num_heads} and {num_kv_heads}"
            )
        library = import_extra("transformers", "tts")
        self.num_pieces = num_pieces
        self.codebook_size = codebook_size
        self.speaker_dim = speaker_dim
        self.dim = dim
        self.token_dropout = token_dropout
        self.aligned = aligned
        if aligned:
            #: Number of tokens: offset, and slope per piece.
            self.register_buffer("pace", torch.tensor([0.0, 10.0]))
        self.text = nn.Embedding(num_pieces, dim)
        # The special vectors are END, BEGIN and hidden; END is a class.
        self.toks = TokenEmbedding(
            codebook_size,
            dim,
            num_special=3,
            freeze=freeze,
            tied_to_codes=tied_to_codes,
            scale=INITIAL_STD * math.sqrt(dim),
        )
        self.speaker: nn.Linear | None = None
        if speaker_dim is not None:
            self.speaker = nn.Linear(speaker_dim, dim)
        self.dropout = nn.Dropout(dropout)
        config = library.LlamaConfig(
            vocab_size=1,
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.backbone = library.LlamaModel(config)
        # The input is vectors. DistributedDataParallel fails on parameters
        # without gradients.
        self.backbone.embed_tokens = None
        self.head: TokenSoftmax | CodeMixture
        if mixture is None:
            self.head = TokenSoftmax(dim, codebook_size, INITIAL_STD)
        else:
            self.head = CodeMixture(dim, codebook_size, mixture)
        nn.init.normal_(self.text.weight, std=INITIAL_STD)

    @property
    def end(self) -> int:
        """Class that ends an utterance."""
        return self.codebook_size

    @property
    def begin(self) -> int:
        """Input that starts an utterance; not a class."""
        return self.codebook_size + 1

    @property
    def hidden(self) -> int:
        """Input that replaces tokens hidden by `token_dropout`; not a class."""
        return self.codebook_size + 2

    def forward(
        self,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        toks: torch.Tensor,
        tok_lengths: torch.Tensor,
        speaker: torch.Tensor | None = None,
        max_length: int | None = None,
    ) -> tuple[TokenScores, torch.Tensor]:
        """Score each token given all tokens before it.

        Utterances are packed into rows, which does not change the scores.

        Arguments
        ---------
        text : torch.Tensor
            Pieces, int64 [B, T].
        text_lengths : torch.Tensor
            Absolute lengths, int64 [B].
        toks : torch.Tensor
            Tokens, int64 [B, N].
        tok_lengths : torch.Tensor
            Absolute lengths, int64 [B].
        speaker : torch.Tensor, optional
            Embeddings of voices [B, speaker_dim].
        max_length : int, optional
            Length of a packed row; by default that of the longest utterance.
            An utterance has one position per piece and per token, one for
            BEGIN and one for a voice.

        Returns
        -------
        scores : TokenScores
            Scores of M classes: all tokens and ENDs, utterance by utterance.
        targets : torch.Tensor
            Target classes, int64 [M].

        Raises
        ------
        ValueError
            If a voice is missing or unexpected, or an utterance is longer than
            `max_length`.
        """
        seen = toks
        if self.training and self.token_dropout:
            drawn = torch.rand(toks.shape, device=toks.device)
            seen = toks.masked_fill(drawn < self.token_dropout, self.hidden)
        inputs = F.pad(seen, (1, 0), value=self.begin)
        counts = tok_lengths + 1
        packing = Packing.of(
            self._prompt_lengths(text_lengths) + tok_lengths, max_length
        )
        x, places, positions = self._place(
            packing.starts,
            packing.items.numel(),
            (text, text_lengths),
            (inputs, counts),
            speaker,
            tok_lengths,
        )
        x = x.view(*packing.items.shape, self.dim)
        hidden = self.backbone(
            inputs_embeds=self.dropout(x),
            attention_mask=packing.mask(x.dtype),
            position_ids=positions.view(packing.items.shape),
            use_cache=False,
        ).last_hidden_state
        targets = F.pad(toks, (0, 1))
        targets = targets.scatter(1, tok_lengths[:, None], self.end)
        targets = targets[length_mask(counts, targets.shape[1])]
        return self.head(hidden.flatten(0, 1)[places]), targets

    def expected(self, text_lengths: torch.Tensor) -> torch.Tensor:
        """Predicted number of tokens for texts [B]; only if aligned."""
        if not self.aligned:
            return text_lengths
        offset, slope = self.pace
        return (offset + slope * text_lengths).clamp(min=1)

    def start(
        self,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        speaker: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, DecodingState]:
        """Score the first token.

        `text` is int64 [B, T] and `speaker` [B, speaker_dim]. Returns
        log-probabilities [B, codebook_size + 1] and the state for :meth:`step`.
        """
        size = len(text)
        inputs = torch.full_like(text[:, :1], self.begin)
        ones = torch.ones_like(text_lengths)
        lengths = self._prompt_lengths(text_lengths)
        # Left padding: all utterances end at the same position.
        width = int(lengths.max())
        padding = width - lengths
        starts = torch.arange(size, device=text.device) * width + padding
        x, _, positions = self._place(
            starts,
            size * width,
            (text, text_lengths),
            (inputs, ones),
            speaker,
            self.expected(text_lengths),
        )
        steps = torch.arange(width, device=text.device)
        valid = steps >= padding[:, None]
        seen = (steps[:, None] >= steps) & valid[:, None, :]
        # Padding only attends to itself.
        seen = seen | torch.eye(width, dtype=torch.bool, device=text.device)
        result = self.backbone(
            inputs_embeds=x.view(size, width, self.dim),
            attention_mask=additive_mask(seen, x.dtype),
            position_ids=positions.view(size, width),
            use_cache=True,
        )
        after = ones if self.aligned else lengths
        state = DecodingState(result.past_key_values, valid, after)
        scores = self.head(result.last_hidden_state[:, -1])
        return scores.log_probs(), state

    def step(self, toks: torch.Tensor, state: DecodingState) -> torch.Tensor:
        """Score the token that follows `toks`, int64 [B].

        Updates the state in place. Returns log-probabilities
        [B, codebook_size + 1].
        """
        x = self.toks(toks)[:, None]
        state.valid = F.pad(state.valid, (0, 1), value=True)
        result = self.backbone(
            inputs_embeds=x,
            attention_mask=additive_mask(state.valid[:, None], x.dtype),
            position_ids=state.positions[:, None],
            past_key_values=state.cache,
            use_cache=True,
        )
        state.cache = result.past_key_values
        state.positions = state.positions + 1
        return self.head(result.last_hidden_state[:, -1]).log_probs()

    def _prompt_lengths(self, text_lengths: torch.Tensor) -> torch.Tensor:
        """Number of positions up to and including BEGIN."""
        return text_lengths + 1 + int(self.speaker is not None)

    def _place(
        self,
        starts: torch.Tensor,
        size: int,
        text: tuple[torch.Tensor, torch.Tensor],
        inputs: tuple[torch.Tensor, torch.Tensor],
        speaker: torch.Tensor | None,
        expected: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay sequences out in one row of `size` positions, each at its start.

        Returns the vectors [size, dim] (zero between sequences), the indices of
        BEGIN and the tokens, and the rotary positions [size].
        """
        pieces, text_lengths = text
        toks, tok_lengths = inputs
        places, vectors, positions = [], [], []
        if (speaker is None) != (self.speaker is None):
            raise ValueError(
                "speaker is missing: this model was made with speaker_dim="
                f"{self.speaker_dim}"
                if speaker is None
                else "speaker is given, but this model was made without "
                "speaker_dim"
            )
        zeros = torch.zeros_like(starts)
        after = zeros
        if self.speaker is not None:
            vectors.append(self.speaker(speaker))
            places.append(starts)
            positions.append(zeros)
            after = zeros + 1
        text_steps = spans(zeros, text_lengths)
        tok_steps = spans(zeros, tok_lengths)
        vectors.append(
            self.text(pieces[length_mask(text_lengths, pieces.shape[1])])
        )
        starts = starts + after
        places.append(spans(starts, text_lengths))
        vectors.append(self.toks(toks[length_mask(tok_lengths, toks.shape[1])]))
        starts = starts + text_lengths
        places.append(spans(starts, tok_lengths))
        if self.aligned:
            stride = expected / text_lengths.clamp(min=1)
            stride = torch.repeat_interleave(stride, text_lengths)
            positions += [(text_steps + 0.5) * stride, tok_steps]
        else:
            first = torch.repeat_interleave(after, text_lengths)
            positions.append(first + text_steps)
            first = torch.repeat_interleave(after + text_lengths, tok_lengths)
            positions.append(first + tok_steps)
        dtype = vectors[-1].dtype
        x = torch.zeros(size, self.dim, dtype=dtype, device=starts.device)
        # Under autocast the voice has another dtype.
        source = torch.cat([vector.to(dtype) for vector in vectors])
        where = torch.cat(places)
        numbers = torch.cat([each.float() for each in positions])
        clock = torch.zeros(size, device=starts.device)
        return (
            x.index_copy(0, where, source),
            places[-1],
            clock.index_copy(0, where, numbers),
        )
