"""Live audio on onnxruntime: the sessions of streaming, with NumPy arrays.

They run a causal model that ``focalcodec export-onnx`` wrote, and need no
torch. The outputs of a session, concatenated, equal the output of
`OnnxFocalCodec` bit for bit.
"""

import numpy as np

from speechbrain_focalcodec.onnx.runtime import OnnxFocalCodec
from speechbrain_focalcodec.streaming.base import OneWay, RoundTrip

__all__ = [
    "OnnxStreamingDecoder",
    "OnnxStreamingEncoder",
    "OnnxStreamingResynthesizer",
]


class OnnxStreamingEncoder(OneWay[np.ndarray]):
    """Encodes samples to tokens as they arrive.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    """

    def __init__(self, codec: OnnxFocalCodec):
        super().__init__(codec.encoding())


class OnnxStreamingDecoder(OneWay[np.ndarray]):
    """Decodes tokens to samples as they arrive.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    """

    def __init__(self, codec: OnnxFocalCodec):
        super().__init__(codec.decoding())


class OnnxStreamingResynthesizer(RoundTrip[np.ndarray]):
    """Encodes and decodes samples as they arrive.

    The outputs up to `flush` last exactly as long as the input.

    Arguments
    ---------
    codec : OnnxFocalCodec
        A causal model. It is shared, not copied.

    Raises
    ------
    StreamError
        If the model is an offline one; names those that stream.
    """

    def __init__(self, codec: OnnxFocalCodec):
        super().__init__(codec.encoding(), codec.decoding())
