"""Sessions give what one pass gives, however the input is cut."""

import pickle

import pytest
import torch
from causal_codecs import CODECS, make_codec
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import AudioError, StreamError, TokenError
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


@given(
    st.integers(1, 20000),
    st.lists(st.integers(0, 20000), max_size=12),
    st.integers(0, 9),
)
def test_any_cutting_gives_the_tokens_of_one_pass(codec, length, cuts, seed):
    sig = make_sig(seed, length)
    with torch.no_grad():
        want, _ = codec.encode(sig[None])
    assert torch.equal(run(StreamingEncoder(codec), sig, cuts), want[0])


@given(
    st.integers(1, 60),
    st.lists(st.integers(0, 60), max_size=12),
    st.integers(0, 9),
)
def test_any_cutting_gives_the_waveform_of_one_pass(codec, num, cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    toks = torch.randint(64, (num,), generator=generator)
    with torch.no_grad():
        want, _ = codec.decode(toks[None])
    got = run(StreamingDecoder(codec), toks, cuts)
    torch.testing.assert_close(got, want[0], rtol=0, atol=1e-4)


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
@pytest.mark.parametrize("cut", [0, 500, 9000])
def test_a_stream_goes_on_in_another_session(
    codec, session_class, cut, tmp_path
):
    x = inputs(session_class, 3, 20000)
    cut = cut if session_class is not StreamingDecoder else cut // 320
    want = run(session_class(codec), x, [cut])
    first, second = session_class(codec), session_class(codec)
    second.push(x[:999])  # what it did before does not matter
    part = first.push(x[:cut])
    path = tmp_path / "state.safetensors"
    save_file(first.state_dict(), path)
    first.push(x[cut:])
    second.load_state_dict(load_file(path))
    rest = torch.cat([second.push(x[cut:]), second.flush()])
    torch.testing.assert_close(torch.cat([part, rest]), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_state_that_does_not_fit_changes_nothing(codec, session_class):
    x = inputs(session_class, 4, 20000)
    session = session_class(codec)
    session.push(x[:10000])
    before = session.state_dict()
    name = next(key for key in before if key.endswith(".context"))
    pending = next(key for key in before if "pending" in key)
    bad = [
        {k: v for k, v in before.items() if k != name},
        {k: v for k, v in before.items() if "pending" not in k},
        {**before, "more": torch.zeros(1)},
        {**before, "state.more": torch.zeros(1)},
        {**before, name: before[name][:, 1:]},
        {**before, name: before[name].double()},
        {**before, name: before[name].repeat(2, 1, 1)},
        {**before, pending: before[pending].new_zeros(5000)},
        {},
    ]
    for tensors in bad:
        with pytest.raises(StreamError, match="state"):
            session.load_state_dict(tensors)
        after = session.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_damaged_state_changes_nothing(codec, session_class):
    """What only a part of a session could see, or only its content tells."""
    x = inputs(session_class, 4, 20000)
    session = session_class(codec)
    session.push(x[: len(x) // 2])
    before = session.state_dict()
    pending = [key for key in before if key.endswith("pending")][-1]
    flag = [key for key in before if key.endswith("ended")][-1]
    state = [key for key in before if "state." in key]
    bad: list[dict[str, torch.Tensor]] = [
        {k.replace("state.", ""): v for k, v in before.items()},
        {**before, state[0].replace("state.", ""): before[state[0]]},
        {**before, flag: torch.tensor([False, False])},
        {
            **before,
            pending: torch.tensor([torch.nan])
            if before[pending].is_floating_point()
            else torch.tensor([64]),
        },
    ]
    keys = [key for key in state if key.endswith(".key")]
    bad += [{**before, key: before[key][:, :, 1:]} for key in keys[:1]]
    if "counts" in before:
        bad.append({**before, "counts": torch.tensor([10, 10**6])})
    for tensors in bad:
        with pytest.raises(StreamError, match="state"):
            session.load_state_dict(tensors)
        after = session.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_memory_is_what_is_carried(codec, session_class):
    """No view keeps alive what was pushed."""
    x = inputs(session_class, 5, 20 * 16000 + 5)
    session = session_class(codec)
    session.push(x.requires_grad_() if x.is_floating_point() else x)
    for way in session.ways:
        kept = [way._pending]
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


def fail_at(direction, call: int) -> None:
    """Let one call of a direction fail, as where memory is short."""
    run, calls = direction.run, iter(range(1000))

    def failing(*args):
        if next(calls) == call:
            raise MemoryError("injected")
        return run(*args)

    direction.run = failing


@pytest.mark.parametrize("session_class", SESSIONS)
@pytest.mark.parametrize("call", [0, 2])
def test_a_failure_ends_the_stream(codec, session_class, call):
    x = inputs(session_class, 1, 20000)
    for i in range(len(session_class(codec).ways)):
        session = session_class(codec)
        fail_at(session.ways[i].direction, call)
        pieces = iter(x.split(session.chunk_length))
        with pytest.raises(MemoryError):
            for piece in pieces:
                session.push(piece)
        for action in (
            lambda: session.push(next(pieces)),  # noqa: B023
            session.flush,
            session.state_dict,
        ):
            with pytest.raises(StreamError, match=r"failure.*reset"):
                action()
        session.reset()
        want = run(session_class(codec), x, [])
        torch.testing.assert_close(run(session, x, [500]), want)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_failure_in_the_last_chunk_ends_the_stream(codec, session_class):
    session = session_class(codec)
    session.push(inputs(session_class, 1, 300))
    fail_at(session.ways[-1].direction, 0)
    with pytest.raises(MemoryError):
        session.flush()
    with pytest.raises(StreamError, match="failure"):
        session.flush()


def test_a_failing_match_ends_the_stream(codec):
    def fail(qfeats):
        raise RuntimeError("no match")

    session = StreamingResynthesizer(codec, fail)
    with pytest.raises(RuntimeError, match="no match"):
        session.push(make_sig(1, 2000))
    with pytest.raises(StreamError, match="reset"):
        session.push(make_sig(1, 2000))


@pytest.mark.parametrize("session_class", SESSIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_with_nan_is_refused(codec, session_class, value):
    x = inputs(session_class, 3, 9000)
    session = session_class(codec)
    session.push(x[: len(x) // 2])
    state = session.state_dict()
    floats = [name for name in state if state[name].is_floating_point()]
    assert floats
    for name in floats:
        if state[name].numel():
            bad = {k: v.clone() for k, v in state.items()}
            bad[name].view(-1)[-1] = value
            with pytest.raises(StreamError, match="NaN"):
                session.load_state_dict(bad)
    other = session_class(codec)
    other.load_state_dict(state)
    torch.testing.assert_close(
        run(session, x[len(x) // 2 :], []), run(other, x[len(x) // 2 :], [])
    )


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("session_class", [*SESSIONS, StreamingVoiceConverter])
def test_sessions_pickle(codec, session_class, ended):
    x = inputs(session_class, 3, 9000)
    half = len(x) // 2
    args = []
    if session_class is StreamingVoiceConverter:
        args = [VoiceReference.from_sigs(codec, [make_sig(8, 16000)]), 2]
    session = session_class(codec, *args)
    session.push(x[:half])
    if ended:
        session.flush()
    loaded = pickle.loads(pickle.dumps(session))
    if ended:
        with pytest.raises(StreamError, match="ended by flush"):
            loaded.push(x)
    else:
        want = run(session, x[half:], [])
        torch.testing.assert_close(run(loaded, x[half:], [700]), want)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_state_of_another_model_is_refused(codec, session_class):
    session = session_class(make_codec("vocos"))
    other = session_class(make_codec("down_scaled"))
    for stream in (session, other):
        stream.push(inputs(session_class, 5, 9000))
    with pytest.raises(StreamError, match="state"):
        other.load_state_dict(session.state_dict())


@pytest.mark.parametrize("session_class", SESSIONS)
def test_reset_starts_anew(codec, session_class):
    x = inputs(session_class, 6, 9000)
    session = session_class(codec)
    want = run(session, x, [])
    with pytest.raises(StreamError, match="reset"):
        session.push(x)
    assert len(session.flush()) == 0
    session.reset()
    torch.testing.assert_close(run(session, x, [4000]), want)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_to_moves_all_that_is_carried(codec, session_class):
    session = session_class(codec)
    session.push(inputs(session_class, 7, 9000))
    for tensor in session.to("meta").state_dict().values():
        assert tensor.device.type == "meta" or tensor.numel() <= 2


def test_bad_input_is_named(codec):
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    with pytest.raises(AudioError, match="sig"):
        encoder.push(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match=r"sig: must be \[T\]"):
        encoder.push(torch.zeros(1, 100))
    with pytest.raises(ValueError, match="float"):
        encoder.push(torch.zeros(100, dtype=torch.int16))
    with pytest.raises(TokenError, match=r"0\.\.63"):
        decoder.push(torch.tensor([64]))
    with pytest.raises(TokenError, match="integers"):
        decoder.push(torch.tensor([0.5]))
    # Nothing of it was taken in.
    assert len(encoder.flush()) == len(decoder.flush()) == 0


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
