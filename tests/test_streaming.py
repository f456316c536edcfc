"""Sessions in torch equal one pass; test_sessions.py has both back ends."""

import pickle

import pytest
import torch
from causal_codecs import CODECS, make_codec

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import StreamError
from speechbrain_focalcodec.modules.ring import Ring
from speechbrain_focalcodec.streaming import (
    StreamingDecoder,
    StreamingEncoder,
    StreamingResynthesizer,
    StreamingVoiceConverter,
)
from speechbrain_focalcodec.voice import VoiceReference

SESSIONS = (StreamingEncoder, StreamingDecoder, StreamingResynthesizer)


@pytest.fixture(scope="module")
def codec():
    return make_codec("wavenext")


def make_sig(seed: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(length, generator=generator)


def run(session, x: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """Push `x` in pieces that end at `cuts`, and flush."""
    ends = [*sorted(min(cut, len(x)) for cut in cuts), len(x)]
    starts = [0, *ends[:-1]]
    parts = [session.push(x[i:j]) for i, j in zip(starts, ends, strict=True)]
    return torch.cat([*parts, session.flush()])


def inputs(session_class, seed: int, length: int) -> torch.Tensor:
    if session_class is StreamingDecoder:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(64, (-(-length // 320),), generator=generator)
    return make_sig(seed, length)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("length", [1, 1280, 1281, 30000])
def test_resynthesis_lasts_as_long_as_the_input(name, length):
    codec = make_codec(name)
    sig = make_sig(0, length)
    with torch.no_grad():
        want = codec.resynthesize(sig[None])[0]
    got = run(StreamingResynthesizer(codec), sig, [700, 5000, 5001])
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_a_minute_on_a_small_window_stays_exact_and_bounded(codec):
    sig = make_sig(1, 60 * 16000 + 123)
    with torch.no_grad():
        want, _ = codec.encode(sig[None])
        rec, _ = codec.decode(want)
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    toks, recs, sizes = [], [], set()
    for chunk in sig.split(1600):
        toks.append(encoder.push(chunk))
        recs.append(decoder.push(toks[-1]))
        if len(toks) > 20:
            sizes.add(
                sum(
                    x.numel()
                    for session in (encoder, decoder)
                    for name, x in session.state_dict().items()
                    if name != "pending"
                )
            )
    toks.append(encoder.flush())
    recs += [decoder.push(toks[-1]), decoder.flush()]
    assert torch.equal(torch.cat(toks), want[0])
    torch.testing.assert_close(torch.cat(recs), rec[0], rtol=0, atol=1e-4)
    assert len(sizes) == 1


@pytest.mark.parametrize("session_class", SESSIONS)
def test_memory_is_what_is_carried(codec, session_class):
    """No view keeps alive what was pushed."""
    x = inputs(session_class, 5, 20 * 16000 + 5)
    session = session_class(codec)
    session.push(x.requires_grad_() if x.is_floating_point() else x)
    for way in session.ways:
        kept = [way.pending]
        for value in way.state.table.values():
            kept.append(value.tensor if isinstance(value, Ring) else value)
        for tensor in kept:
            assert not tensor.requires_grad
            size = tensor.numel() * tensor.element_size()
            assert tensor.untyped_storage().nbytes() == size


@pytest.mark.parametrize("session_class", SESSIONS)
def test_inference_mode_comes_and_goes(session_class):
    codec = make_codec("vocos", window_size=160)
    x = inputs(session_class, 6, 9000)
    want = run(session_class(codec), x, [])
    for first in (False, True):
        session, parts = session_class(codec), []
        for i, part in enumerate(x.split(len(x) // 6)):
            with torch.inference_mode(bool(i % 2) is first):
                parts.append(session.push(part))
                session.load_state_dict(session.state_dict())
        parts.append(session.flush())
        torch.testing.assert_close(
            torch.cat([part.clone() for part in parts]), want, rtol=0, atol=1e-5
        )


def test_a_failing_match_ends_the_stream(codec):
    def fail(qfeats):
        raise RuntimeError("no match")

    session = StreamingResynthesizer(codec, fail)
    with pytest.raises(RuntimeError, match="no match"):
        session.push(make_sig(1, 2000))
    with pytest.raises(StreamError, match="reset"):
        session.push(make_sig(1, 2000))


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_state_of_another_model_is_refused(codec, session_class):
    session = session_class(make_codec("vocos"))
    other = session_class(make_codec("down_scaled"))
    for stream in (session, other):
        stream.push(inputs(session_class, 5, 9000))
    with pytest.raises(StreamError, match="state"):
        other.load_state_dict(session.state_dict())


@pytest.mark.parametrize("session_class", SESSIONS)
def test_to_moves_all_that_is_carried(codec, session_class):
    session = session_class(codec)
    session.push(inputs(session_class, 7, 9000))
    for tensor in session.to("meta").state_dict().values():
        assert tensor.device.type == "meta" or tensor.numel() <= 2


def test_voice_converters_pickle(codec):
    reference = VoiceReference.from_sigs(codec, [make_sig(8, 16000)])
    sig = make_sig(3, 9000)
    session = StreamingVoiceConverter(codec, reference, 2)
    session.push(sig[:4500])
    loaded = pickle.loads(pickle.dumps(session))
    want = run(session, sig[4500:], [])
    torch.testing.assert_close(run(loaded, sig[4500:], [700]), want)


@pytest.mark.parametrize("cuts", [[], [700, 5000, 5001]])
def test_voice_conversion_equals_one_pass(codec, cuts):
    reference = VoiceReference.from_sigs(codec, [make_sig(8, 30000)])
    sig = make_sig(9, 12345)
    with torch.no_grad():
        want = codec.convert_voice(sig[None], reference)[0]
    got = run(StreamingVoiceConverter(codec, reference), sig, cuts)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    # Shared by sessions, not copied for each.
    assert reference.to("cpu") is reference


@pytest.mark.parametrize("session_class", SESSIONS)
def test_offline_models_name_the_causal_ones(session_class):
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    with pytest.raises(StreamError, match="focalcodec_50hz_4k_causal"):
        session_class(codec)
