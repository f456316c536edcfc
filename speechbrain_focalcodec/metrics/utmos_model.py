"""Network of UTMOS' strong learner: wav2vec 2.0 and an LSTM."""

import re
from typing import Any

import torch
from torch import nn

from speechbrain_focalcodec.checkpoint import Weights
from speechbrain_focalcodec.errors import CheckpointError

__all__ = ["Utmos22", "rename_utmos"]

# Indices of the predicted listener and corpus.
JUDGE, DOMAIN = 288, 0

# Names in the published checkpoint (regular expressions): fairseq's
# wav2vec 2.0, then the other parts.
SSL = r"^feature_extractors\.0\.ssl_model\."
CONV = r"\.conv_layers\.(\d+)"
PUBLISHED = (
    (rf"{SSL}layer_norm\.", "encoder.feature_projection.layer_norm."),
    (rf"{SSL}post_extract_proj\.", "encoder.feature_projection.projection."),
    (SSL, "encoder."),
    (rf"{CONV}\.0\.", r".conv_layers.\1.conv."),
    (rf"{CONV}\.2\.", r".conv_layers.\1.layer_norm."),
    (r"\.pos_conv\.0\.", ".pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
    (r"^feature_extractors\.1\.embedding\.", "domains."),
    (r"^output_layers\.0\.judge_embedding\.", "judges."),
    (r"^output_layers\.0\.decoder_rnn\.", "lstm."),
    (r"^output_layers\.1\.net\.", "head."),
)

# Only used in pre-training.
LEFT_OUT = ("encoder.mask_emb", "encoder.masked_spec_embed")


class Utmos22(nn.Module):
    """Predicts the naturalness of speech (Saeki et al., 2022).

    `encoder` is a `Wav2Vec2Model` of `transformers`. The sizes of the other
    parts are taken from the weights.
    """

    def __init__(self, encoder: Any, weights: Weights):
        super().__init__()
        self.encoder = encoder
        judges, domains, hidden, classifier = (
            tuple(weights[name].shape)
            for name in (
                "judges.weight",
                "domains.weight",
                "lstm.weight_hh_l0",
                "head.0.weight",
            )
        )
        self.judges = nn.Embedding(judges[0], judges[1])
        self.domains = nn.Embedding(domains[0], domains[1])
        self.lstm = nn.LSTM(
            encoder.config.hidden_size + judges[1] + domains[1],
            hidden[1],
            batch_first=True,
            bidirectional=True,
        )
        self.head = nn.Sequential(
            nn.Linear(2 * hidden[1], classifier[0]),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(classifier[0], 1),
        )

    def forward(self, sig: torch.Tensor) -> torch.Tensor:
        """Ratings [B], 1 to 5, of unpadded waveforms [B, T] at 16 kHz."""
        feats = self.encoder(sig).last_hidden_state
        listener = torch.cat(
            [self.domains.weight[DOMAIN], self.judges.weight[JUDGE]]
        )
        listener = listener.expand(*feats.shape[:2], -1)
        hidden, _ = self.lstm(torch.cat([feats, listener], dim=2))
        return 3 + 2 * self.head(hidden)[..., 0].mean(1)


def rename_utmos(weights: Weights, source: Any) -> Weights:
    """Rename the published checkpoint's weights as in `Utmos22`.

    Raises a CheckpointError if parts of UTMOS are missing.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in PUBLISHED:
            name = re.sub(pattern, replacement, name)
        if name not in LEFT_OUT:
            renamed[name] = value.float()
    for name, least in (("judges.weight", JUDGE), ("domains.weight", DOMAIN)):
        if name not in renamed:
            raise CheckpointError(
                f"{source}: holds no UTMOS: {name} is missing"
            )
        value = renamed[name]
        if value.ndim != 2 or len(value) <= least:
            raise CheckpointError(
                f"{source}: {name} is {list(value.shape)}: row {least} is "
                "missing"
            )
    for name in ("lstm.weight_hh_l0", "head.0.weight"):
        if renamed.get(name, torch.zeros(0)).ndim != 2:
            raise CheckpointError(
                f"{source}: holds no UTMOS: {name} is missing"
            )
    return renamed
