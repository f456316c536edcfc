"""What a stage changes in a codec before it trains it."""

from collections.abc import Iterable

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import ConfigError

__all__ = ["freeze", "remove_refiner"]


def freeze(codec: FocalCodec, names: Iterable[str]) -> None:
    """Take modules or weights of a codec out of training.

    Arguments
    ---------
    codec : FocalCodec
        The codec.
    names : iterable of str
        Names in it, or what these begin with, up to a dot.

    Raises
    ------
    ConfigError
        If there is nothing of a name.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> freeze(codec, ["decompressor.layers.0", "decoder"])
    >>> codec.decompressor.in_proj.weight.requires_grad
    True
    >>> codec.decoder.head.proj.weight.requires_grad
    False
    """
    for name in names:
        found = [
            weight
            for key, weight in codec.named_parameters()
            if f"{key}.".startswith(f"{name}.")
        ]
        if not found:
            raise ConfigError(
                f"freeze: the codec has no {name!r}; names are those of its "
                "state dict, such as compressor or decompressor.layers.0"
            )
        for weight in found:
            weight.requires_grad_(False)


def remove_refiner(codec: FocalCodec) -> None:
    """Make a codec one whose decompressor looks no frame ahead.

    Arguments
    ---------
    codec : FocalCodec
        The codec. An offline one is left as it is.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("tests/parity/causal_50hz")
    >>> remove_refiner(codec)
    >>> codec.config.decompressor_config.lookahead_size
    0
    """
    codec.decompressor.remove_refiner()
