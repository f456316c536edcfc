"""The parts of the codec: encoders, (de)compressor, quantizer, decoders.

Every module takes frames (or samples) with time on axis 1, an optional
int64 [B] tensor of absolute lengths, and, where it is causal, an optional
:class:`~speechbrain_focalcodec.modules.causal.StreamState`. Padding beyond
an utterance's length never changes the output within it.
"""
