"""A causal language model of speech tokens, given text and a voice.

The backbone is the Llama of ``transformers`` (extra ``tts``): RMSNorm, rotary
positions, SwiGLU, heads that share keys and values.
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

# Deviation of what embeddings and output weights start as: Llama's own.
INITIAL_STD = 0.02


@dataclass
class DecodingState:
    """What a batch carries from token to token.

    Arguments
    ---------
    cache : object
        Keys and values of the backbone.
    valid : torch.Tensor
        What of them is no padding, bool [B, K].
    positions : torch.Tensor
        Position of the next input, int64 [B].
    """

    cache: Any
    valid: torch.Tensor
    positions: torch.Tensor


class TokenLanguageModel(nn.Module):
    """Text and a voice to tokens, one after the other.

    A sequence is ``[voice] [pieces of text] [BEGIN] [tokens] [END]``; what is
    learnt are the tokens and END. Tokens start as the codes that they stand
    for, see
    :class:`~speechbrain_focalcodec.modules.token_embedding.TokenEmbedding`.

    Arguments
    ---------
    num_pieces : int
        Number of different pieces of text.
    codebook_size : int
        Number of different tokens, a power of two. END is the class after
        them.
    speaker_dim : int, optional
        Size of a voice's embedding; without, sequences begin with the text.
    dim : int
        Size of the vectors.
    num_layers : int
        Number of layers.
    num_heads : int
        Attention heads.
    num_kv_heads : int
        Heads of keys and values, which the attention heads share.
    ffn_dim : int
        Size within the feed-forward parts.
    dropout : float
        Of the input vectors. The attention has none: with it, PyTorch's fast
        attention on a CPU would not serve.
    token_dropout : float
        Share of the tokens that the model does not see in training, so that
        it has to look at the text: with little data it would learn the tokens
        by heart instead.
    aligned : bool
        Give the pieces of text positions on the tokens' own clock, spread
        evenly over the utterance: a token then finds what it says near its
        own position, which little data does not teach otherwise (compare the
        progress-monitoring positions of VoiceStar, Peng et al., 2025). How
        long an utterance will be is told by `pace`.
    freeze : bool
        Keep the tokens' vectors as they start.
    tied_to_codes : bool
        Learn a linear function of the codes, not a vector for each token: for
        large codebooks.
    mixture : int, optional
        Number of components of a
        :class:`~speechbrain_focalcodec.downstream.token_scores.CodeMixture`,
        which is the output layer then: for little data and large codebooks.
        By default it is a softmax, with a vector for each token.

    Raises
    ------
    ImportError
        If ``transformers`` is not installed.
    ValueError
        If the heads do not divide `dim`, or those of keys the heads.

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
        # Rotary positions turn pairs.
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
            #: Tokens of an utterance: so many, and so many for each piece.
            self.register_buffer("pace", torch.tensor([0.0, 10.0]))
        self.text = nn.Embedding(num_pieces, dim)
        # END first: classes are the rows up to it.
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
        # It is given vectors; an embedding without use has no gradient, which
        # training by several processes does not bear.
        self.backbone.embed_tokens = None
        self.head: TokenSoftmax | CodeMixture
        if mixture is None:
            self.head = TokenSoftmax(dim, codebook_size, INITIAL_STD)
        else:
            self.head = CodeMixture(dim, codebook_size, mixture)
        nn.init.normal_(self.text.weight, std=INITIAL_STD)

    @property
    def end(self) -> int:
        """The class that ends an utterance."""
        return self.codebook_size

    @property
    def begin(self) -> int:
        """The input that begins an utterance; it is no class."""
        return self.codebook_size + 1

    @property
    def hidden(self) -> int:
        """The input in place of what `token_dropout` hides; it is no class."""
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
        """Scores of each next token, given all before it.

        Utterances are packed into rows, which changes no result.

        Arguments
        ---------
        text : torch.Tensor
            Pieces, int64 [B, T].
        text_lengths : torch.Tensor
            int64 [B].
        toks : torch.Tensor
            Tokens, int64 [B, N].
        tok_lengths : torch.Tensor
            int64 [B].
        speaker : torch.Tensor, optional
            Embeddings of voices [B, speaker_dim].
        max_length : int, optional
            Places of a row, of which an utterance takes one a piece, one a
            token and two more; by default as many as the longest needs.

        Returns
        -------
        scores : TokenScores
            Of M classes: all tokens and ENDs, utterance by utterance.
        targets : torch.Tensor
            The right classes, int64 [M].

        Raises
        ------
        ValueError
            If a voice is given but not wanted, or the other way round, or an
            utterance is longer than `max_length`.
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
        """How many tokens a text will take, where the model is aligned.

        Arguments
        ---------
        text_lengths : torch.Tensor
            int64 [B].

        Returns
        -------
        torch.Tensor
            [B]; of a model that is not aligned, `text_lengths`.
        """
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
        """Scores of the first token.

        Arguments
        ---------
        text : torch.Tensor
            Pieces, int64 [B, T].
        text_lengths : torch.Tensor
            int64 [B].
        speaker : torch.Tensor, optional
            Embeddings of voices [B, speaker_dim].

        Returns
        -------
        log_probs : torch.Tensor
            [B, codebook_size + 1].
        state : DecodingState
            For :meth:`step`.

        Raises
        ------
        ValueError
            If a voice is given but not wanted, or the other way round.
        """
        size = len(text)
        inputs = torch.full_like(text[:, :1], self.begin)
        ones = torch.ones_like(text_lengths)
        lengths = self._prompt_lengths(text_lengths)
        # All end at the same place, where the next token goes.
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
        # Padding sees itself, and is seen by nothing else.
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
        """Scores of the token after the next.

        Arguments
        ---------
        toks : torch.Tensor
            The next tokens, int64 [B].
        state : DecodingState
            Is moved on.

        Returns
        -------
        torch.Tensor
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
        """Places of what comes before the first token."""
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
        """Vectors of sequences, each from its start on.

        Returns all of them [size, dim], zero between sequences, where those
        of BEGIN and the tokens are, and the positions of all [size].
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
        # Autocast gives the voice another type.
        source = torch.cat([vector.to(dtype) for vector in vectors])
        where = torch.cat(places)
        numbers = torch.cat([each.float() for each in positions])
        clock = torch.zeros(size, device=starts.device)
        return (
            x.index_copy(0, where, source),
            places[-1],
            clock.index_copy(0, where, numbers),
        )
