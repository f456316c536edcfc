"""The stages as their YAMLs compose them, for tests that make Brains."""

from speechbrain_focalcodec.training.objectives import (
    Adversarial,
    Entropy,
    FeatureError,
    GapFilling,
    LayerDistillation,
    PositionError,
    WaveformLosses,
)

__all__ = ["compose"]


def compose(stage, hparams):
    """Trained parts and objectives of a stage, from the YAML's other keys."""
    weights = hparams.get("loss_weights", {})
    parts = {
        "decoder": ["decoder"],
        "quantizer": ["compressor", "decompressor"],
        "end_to_end": ["compressor", "decompressor", "decoder"],
        "position": ["positional_embedding"],
        "encoder": ["encoder"],
        "joint": ["encoder", "compressor", "decompressor"],
        "pretraining": ["encoder"],
    }
    waveform = [
        lambda: WaveformLosses(hparams["losses"], weights),
        lambda: Adversarial(
            hparams["discriminator_opt_class"],
            weights.get("adversarial", 1.0),
            weights.get("feature_matching", 1.0),
            hparams.get("discriminator_warmup", 0),
            hparams.get("judged_samples"),
        ),
    ]
    bottleneck = [
        lambda: FeatureError(weights.get("feats", 1.0)),
        lambda: Entropy(
            hparams.get("entropy_weight", 0.1),
            hparams.get("diversity_weight", 1.0),
            hparams.get("inverse_temperature", 100.0),
        ),
    ]
    objectives = {
        "decoder": waveform,
        "quantizer": bottleneck,
        "end_to_end": waveform + bottleneck,
        "position": [PositionError],
        "encoder": [
            lambda: LayerDistillation(
                hparams["first_layer_weight"], hparams["last_layer_weight"]
            )
        ],
        "joint": bottleneck,
        "pretraining": [
            lambda: GapFilling(
                hparams["mel"], hparams["gap_samples"], hparams["gap_share"]
            )
        ],
    }
    made = [make() for make in objectives[stage]]
    return {"trains": parts[stage], "objectives": made}
