"""A stream in a pool gives what it gives alone."""

import pickle

import pytest
import torch
from causal_codecs import CODECS, make_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import AudioError, StreamError
from speechbrain_focalcodec.streaming.pool import SESSIONS, StreamPool


@pytest.fixture(scope="module")
def codec():
    return make_codec("vocos")


def make_input(kind: str, seed: int, chunks: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "decode":
        return torch.randint(64, (4 * chunks + 1,), generator=generator)
    return 0.3 * torch.randn(1280 * chunks + 100, generator=generator)


def assert_same(kind: str, got: torch.Tensor, want: torch.Tensor) -> None:
    if kind == "encode":
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


# Events of the streams 0..3, in order: the share of its remaining samples that
# a stream pushes, or that it leaves.
EVENTS = st.lists(
    st.dictionaries(
        st.integers(0, 3), st.floats(0, 0.5), min_size=1, max_size=4
    ),
    max_size=8,
)


@pytest.mark.parametrize("kind", SESSIONS)
@settings(max_examples=25)
@given(EVENTS, st.integers(0, 99))
def test_streams_do_not_depend_on_each_other(codec, kind, events, seed):
    pool = StreamPool(codec, size=3, kind=kind)
    inputs = [make_input(kind, seed + i, 5 + 3 * i) for i in range(4)]
    done = [0] * 4
    outputs: list[list[torch.Tensor]] = [[] for _ in range(4)]
    slots: dict[int, int] = {}
    for event in events:
        pushed = {}
        for stream, share in event.items():
            if stream not in slots and len(pool) < pool.size:
                if done[stream] == 0:
                    slots[stream] = pool.join()
            if stream in slots:
                stop = done[stream] + int(share * len(inputs[stream]))
                pushed[slots[stream]] = inputs[stream][done[stream] : stop]
                done[stream] = min(stop, len(inputs[stream]))
        names = {slot: stream for stream, slot in slots.items()}
        for slot, out in pool.push(pushed).items():
            outputs[names[slot]].append(out)
        for stream in list(slots):
            if done[stream] == len(inputs[stream]):
                outputs[stream].append(pool.leave(slots.pop(stream)))
    for stream, slot in slots.items():
        outputs[stream].append(pool.leave(slot))
    assert len(pool) == 0
    for stream in range(4):
        if outputs[stream]:
            alone = SESSIONS[kind](codec)
            want = [alone.push(inputs[stream][: done[stream]]), alone.flush()]
            assert_same(kind, torch.cat(outputs[stream]), torch.cat(want))


@pytest.mark.parametrize("name", CODECS)
def test_long_windows_are_kept_apart(name):
    """Windows that lie in rings, streams of different age."""
    codec = make_codec(name, window_size=160)
    pool = StreamPool(codec, size=2)
    first = make_input("encode", 1, 60)
    second = make_input("encode", 2, 50)
    a = pool.join()
    outputs = [[pool.push({a: first[: 15 * 1280]})[a]], []]
    b = pool.join()
    for i in range(45):
        piece = slice((15 + i) * 1280, (16 + i) * 1280)
        out = pool.push({b: second[i * 1280 : (i + 1) * 1280], a: first[piece]})
        outputs[0].append(out[a])
        outputs[1].append(out[b])
    for slot, parts, sig, pushed in (
        (a, outputs[0], first, 60),
        (b, outputs[1], second, 45),
    ):
        parts.append(pool.leave(slot))
        with torch.no_grad():
            want = codec.resynthesize(sig[None, : pushed * 1280])[0]
        assert_same("resynthesize", torch.cat(parts), want)


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_stream_moves_to_another_pool(codec, kind):
    x = make_input(kind, 3, 8)
    half = len(x) // 2
    alone = SESSIONS[kind](codec)
    want = torch.cat([alone.push(x), alone.flush()])
    pool, other = (StreamPool(codec, 2, kind) for _ in range(2))
    other.join()
    slot = pool.join()
    first = pool.push({slot: x[:half]})[slot]
    moved = other.join(pool.state_dict(slot))
    rest = other.push({moved: x[half:]})[moved]
    assert_same(kind, torch.cat([first, rest, other.leave(moved)]), want)


def test_slots_are_given_and_freed(codec):
    pool = StreamPool(codec, size=2)
    assert (pool.join(), pool.join(), pool.slots) == (0, 1, [0, 1])
    with pytest.raises(StreamError, match="2 slots"):
        pool.join()
    pool.leave(0)
    assert pool.join() == 0
    with pytest.raises(StreamError, match="slot 5"):
        pool.push({0: torch.zeros(2000), 5: torch.zeros(2000)})
    with pytest.raises(StreamError, match="slot 2"):
        pool.leave(2)
    assert pool.push({}) == {}


def test_a_stream_that_has_ended_does_not_join(codec):
    stream = SESSIONS["encode"](codec)
    stream.flush()
    pool = StreamPool(codec, size=1, kind="encode")
    with pytest.raises(StreamError, match="ended"):
        pool.join(stream.state_dict())
    assert pool.slots == []


def test_one_bad_input_takes_nothing_of_any(codec):
    pool = StreamPool(codec, size=2, kind="encode")
    a, b = pool.join(), pool.join()
    with pytest.raises(AudioError, match="slot 1: sig"):
        pool.push({a: torch.zeros(700), b: torch.full((700,), torch.nan)})
    assert len(pool.leave(a)) == len(pool.leave(b)) == 0


def test_wrong_arguments_are_named(codec):
    with pytest.raises(ValueError, match="size"):
        StreamPool(codec, 0)
    with pytest.raises(ValueError, match="kind"):
        StreamPool(codec, 1, "sing")
    offline = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    with pytest.raises(StreamError, match="causal"):
        StreamPool(offline, 1)


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_failure_ends_the_streams_of_a_push(codec, kind):
    pool = StreamPool(codec, 3, kind)
    first, second, third = (pool.join() for _ in range(3))
    x = make_input(kind, 0, 6)
    want = StreamPool(codec, 1, kind)
    want.join()
    want = want.push({0: x})[0]

    def fail(*args):
        raise MemoryError("injected")

    chunk, rest = x[: pool.chunk_length], x[pool.chunk_length :]
    got = pool.push({third: chunk})[third]
    way = pool._streams[first].ways[-1]
    way.direction.run = fail
    with pytest.raises(MemoryError):
        pool.push({first: chunk, second: chunk})
    for slot in (first, second):
        with pytest.raises(StreamError, match=f"slot {slot}: .*failure"):
            pool.push({slot: chunk})
        with pytest.raises(StreamError, match="failure"):
            pool.leave(slot)
    # What was not pushed goes on, and the slots are free.
    assert pool.slots == [third] and pool.join() == first
    got = torch.cat([got, pool.push({third: rest})[third]])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_pools_pickle(codec):
    pool = StreamPool(codec, 2, "encode")
    slot = pool.join()
    x = make_input("encode", 1, 4)
    pool.push({slot: x[:2000]})
    other = pickle.loads(pickle.dumps(pool))
    want = torch.cat([pool.push({slot: x[2000:]})[slot], pool.leave(slot)])
    got = torch.cat([other.push({slot: x[2000:]})[slot], other.leave(slot)])
    assert torch.equal(got, want)
