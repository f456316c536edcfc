"""The .focal format: exact both ways, and closed to anything damaged."""

import dataclasses
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.tokens import focal as bitstream
from speechbrain_focalcodec.tokens.content import MAX_TOKENS, TokenFile
from speechbrain_focalcodec.tokens.files import load_tokens, save_tokens
from speechbrain_focalcodec.tokens.focal import (
    HEADER_BYTES,
    pack_tokens,
    read_focal,
    read_header,
    unpack_tokens,
    write_focal,
)

DOCS = Path(__file__).parent.parent / "docs" / "bitstream.md"
PROPERTY = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def make(toks, bits=13, rate=44100, **changes):
    toks = torch.as_tensor(toks, dtype=torch.int64)
    values = {
        "toks": toks,
        "model": "focalcodec_mini_50hz",
        "fingerprint": "0123456789abcdef" * 4,
        "num_samples": len(toks) * rate // 50 + 7,
        "sample_rate": rate,
        "codebook_size": 2**bits,
        "token_rate": 50.0,
    }
    return TokenFile(**{**values, **changes})


def some_tokens(number, bits=13):
    return np.arange(1, number + 1) * 2654435761 % 2**bits


def seal(data):
    """Bytes with the checksum that belongs to them."""
    return data + struct.pack("<I", zlib.crc32(data))


def change(whole, offset, form, value):
    """A file with another field, and the checksum of that."""
    data = bytearray(whole[:-4])
    struct.pack_into(f"<{form}", data, offset, value)
    return seal(bytes(data))


@pytest.fixture
def refuse(tmp_path):
    """Says that bytes are no token file, for a reason."""
    path = tmp_path / "a.focal"

    def check(data, reason=": "):
        path.write_bytes(data)
        with pytest.raises(TokenError, match=reason) as caught:
            load_tokens(path)
        assert str(path) in str(caught.value)

    return check


def written(tmp_path, file, **options):
    path = tmp_path / "whole.focal"
    write_focal(path, file, **options)
    return path.read_bytes()


@PROPERTY
@given(
    bits=st.integers(1, 32),
    toks=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=60),
    entropy=st.booleans(),
    rate=st.sampled_from([8000, 16000, 44100, 384000]),
)
def test_any_tokens_come_back(tmp_path, bits, toks, entropy, rate):
    file = make([tok % 2**bits for tok in toks], bits, rate)
    path = tmp_path / "a.focal"
    save_tokens(path, file, entropy=entropy)
    assert path.stat().st_size <= HEADER_BYTES + -(-len(toks) * bits // 8)
    back = load_tokens(path)
    assert back.toks.dtype == torch.int64
    assert torch.equal(back.toks, file.toks)
    assert back.fingerprint == file.fingerprint[:16]
    assert back.belongs_to(file.fingerprint)
    for name in ("num_samples", "sample_rate", "codebook_size", "token_rate"):
        assert getattr(back, name) == getattr(file, name)


@pytest.mark.parametrize("bits", [1, 7, 8, 13, 32])
def test_packing_of_many_blocks(bits):
    toks = some_tokens(3 * 2**16 + 5, bits)
    text = "".join(f"{tok:0{bits}b}" for tok in toks[:1000])
    data = pack_tokens(toks, bits)
    assert len(data) == -(-len(toks) * bits // 8)
    whole = len(text) // 8
    assert data[:whole] == int(text[: 8 * whole], 2).to_bytes(whole, "big")
    assert np.array_equal(unpack_tokens(data, len(toks), bits), toks)
    with pytest.raises(ValueError, match="tokens are not in"):
        unpack_tokens(data + b"\0", len(toks), bits)


def test_hours_are_packed_in_a_moment():
    toks = some_tokens(50 * 3600 * 10)
    start = time.process_time()
    data = pack_tokens(toks, 13)
    back = unpack_tokens(data, len(toks), 13)
    assert time.process_time() - start < 5
    assert np.array_equal(back, toks)


def test_ten_seconds_take_their_nominal_bitrate(tmp_path):
    data = written(tmp_path, make(some_tokens(500), rate=16000))
    assert len(data) == HEADER_BYTES + -(-500 * 13 // 8)
    assert HEADER_BYTES <= 40
    assert len(data) - HEADER_BYTES <= 1.01 * 10 * 50 * 13 / 8


def test_the_example_of_the_docs(tmp_path):
    text = DOCS.read_text(encoding="utf-8")
    lines = re.findall(r"^ +[0-9a-f]{8}  ((?:[0-9a-f]{2} +)+)\|", text, re.M)
    data = bytes.fromhex("".join(lines))
    path = tmp_path / "example.focal"
    path.write_bytes(data)
    file = load_tokens(path)
    assert file.toks.tolist() == [1, 2, 3, 8191]
    assert file.num_samples == 3528 and file.sample_rate == 44100
    assert file.token_rate == 50.0 and file.codebook_size == 8192
    write_focal(tmp_path / "again.focal", file)
    assert (tmp_path / "again.focal").read_bytes() == data
    offsets = [
        (int(row[0]), int(row[1]))
        for row in re.findall(r"^\| (\d+) +\| (\d+) +\|", text, re.M)
    ]
    end = 0
    for offset, size in offsets:
        assert offset == end
        end += size
    assert end == HEADER_BYTES - 4


@pytest.mark.parametrize("entropy", [False, True])
def test_each_flipped_bit_is_found(tmp_path, refuse, entropy):
    toks = np.tile(some_tokens(4), 10)
    data = written(tmp_path, make(toks), entropy=entropy)
    assert read_header(tmp_path / "whole.focal").entropy_coded == entropy
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refuse(bytes(flipped))


@pytest.mark.parametrize("entropy", [False, True])
def test_each_length_but_the_right_one_is_refused(tmp_path, refuse, entropy):
    toks = np.tile(some_tokens(4), 10)
    data = written(tmp_path, make(toks), entropy=entropy)
    for end in range(len(data)):
        refuse(data[:end])
    for more in (b"\0", b"\0" * 4, data):
        refuse(data + more)
    if entropy:
        return
    refuse(data[:-9], "9 bytes are missing")
    refuse(data + b"\0", "1 bytes too many")
    # With a checksum, as a tool that knows no lengths would make it.
    for end in range(len(data) - 4):
        refuse(seal(data[:end]))
    refuse(seal(data[:-4] + b"\0"))


@PROPERTY
@given(data=st.binary(max_size=200), magic=st.booleans(), sealed=st.booleans())
def test_random_bytes_are_refused(tmp_path, data, magic, sealed):
    data = b"FOCL\1" * magic + data
    path = tmp_path / "random.focal"
    path.write_bytes(seal(data) if sealed else data)
    with pytest.raises(TokenError, match="random.focal"):
        load_tokens(path)


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (0, "4s", b"RIFF", "not a .focal file"),
        (4, "B", 2, "version 2 of the .focal format, this release reads 1"),
        (4, "B", 0, "header is not one of this format"),
        (5, "B", 2, "flags 0x02 that this release does not know"),
        (5, "B", 1, "cannot be in"),
        (6, "B", 0, "0 bits per token"),
        (6, "B", 33, "33 bits per token"),
        (6, "B", 14, "cannot be in"),
        (7, "B", 1, "header is not one of this format"),
        (16, "Q", 0, "num_samples is out of range"),
        (16, "Q", 2**64 - 1, "cannot stand for"),
        (24, "I", 3999, "sample_rate is out of range"),
        (24, "I", 2**32 - 1, "sample_rate is out of range"),
        (24, "I", 8000, "cannot stand for"),
        (28, "f", float("nan"), "token_rate is out of range"),
        (28, "f", float("inf"), "token_rate is out of range"),
        (28, "f", -50.0, "token_rate is out of range"),
        (28, "f", 100.0, "cannot stand for"),
        (32, "I", 0, "number of tokens is out"),
        (32, "I", 51, "cannot be in"),
        (32, "I", 49, "cannot be in"),
        (32, "I", 2**32 - 1, "number of tokens is out"),
        (117, "B", 0xFF, "bits after the last token are not zero"),
    ],
)
def test_impossible_headers_are_refused(
    tmp_path, refuse, offset, form, value, reason
):
    data = written(tmp_path, make(some_tokens(50)))
    refuse(change(data, offset, form, value), reason)


def test_a_newer_version_is_named_first(refuse):
    refuse(b"FOCL\7" + bytes(100), "version 7")


def test_claimed_sizes_are_not_allocated(tmp_path, refuse):
    data = written(tmp_path, make(np.zeros(16000), rate=16000), entropy=True)
    assert len(data) < 200
    most = struct.pack("<I", MAX_TOKENS)
    tracemalloc.start()
    start = time.process_time()
    for flags in (0, 1):
        huge = bytearray(data[:-4])
        huge[5], huge[32:36] = flags, most
        huge[16:24] = struct.pack("<Q", MAX_TOKENS * 320)
        refuse(seal(bytes(huge)), "cannot be in")
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_few_bytes_are_decoded_in_little_time(tmp_path, refuse):
    """Half a kilobyte of one-bit tokens took a minute to decode."""
    file = make(np.zeros(60_000), codebook_size=2, rate=16000)
    data = written(tmp_path, file, entropy=True)
    assert not read_header(tmp_path / "whole.focal").entropy_coded
    coded = bytearray(data[: HEADER_BYTES - 4]) + bytes(128)
    coded[5] = 1  # its flag
    start = time.process_time()
    refuse(seal(bytes(coded)), "cannot be in 128 bytes")
    assert time.process_time() - start < 1


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "large.focal"
    with open(path, "wb") as stream:
        stream.write(b"FOCL\1")
        stream.truncate(2**40)
    with pytest.raises(TokenError, match="large.focal: .* more than"):
        load_tokens(path)


def test_coding_that_saves_nothing_is_not_used(tmp_path):
    generator = np.random.default_rng(0)
    noise = make(generator.integers(0, 8192, 500))
    plain = written(tmp_path, noise)
    assert written(tmp_path, noise, entropy=True) == plain
    # A flag that claims it is no file that is written here.
    path = tmp_path / "a.focal"
    path.write_bytes(change(plain, 5, "B", 1))
    with pytest.raises(TokenError, match="cannot be in"):
        read_focal(path)


def test_a_coded_file_without_the_library(tmp_path, monkeypatch):
    file = make(np.tile(some_tokens(4), 50))
    written(tmp_path, file, entropy=True)
    monkeypatch.setitem(sys.modules, "constriction", None)
    path = tmp_path / "whole.focal"
    with pytest.raises(TokenError, match=r"whole.focal: .*\[entropy\]"):
        load_tokens(path)
    with pytest.raises(ImportError, match=r"\[entropy\]"):
        write_focal(tmp_path / "b.focal", file, entropy=True)
    assert [item.name for item in tmp_path.iterdir()] == ["whole.focal"]


def test_the_library_is_imported_when_needed_only(tmp_path):
    written(tmp_path, make(some_tokens(50)))
    code = (
        "import sys; from speechbrain_focalcodec.tokens.files import *; "
        "import speechbrain_focalcodec.inference; "
        f"load_tokens({str(tmp_path / 'whole.focal')!r}); "
        "sys.exit('constriction' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOCS.parent)


def test_the_content_tells_the_format(tmp_path):
    file = make(some_tokens(50))
    save_tokens(tmp_path / "a.focal", file)
    save_tokens(tmp_path / "b.npz", file)
    (tmp_path / "a.focal").rename(tmp_path / "c.npz")
    (tmp_path / "b.npz").rename(tmp_path / "d.focal")
    for name, model in (("c.npz", ""), ("d.focal", file.model)):
        back = load_tokens(tmp_path / name)
        assert torch.equal(back.toks, file.toks) and back.model == model
    # An archive names its model in full.
    with pytest.raises(TokenError, match="must be whole in an archive"):
        save_tokens(tmp_path / "e.npz", load_tokens(tmp_path / "c.npz"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codebook_size": 8000}, "power of two, not 8000; write a .npz file"),
        ({"fingerprint": "0" * 15}, "fingerprint"),
        ({"toks": torch.full((50,), 8192)}, "not within 0..8191"),
        ({"num_samples": 2**70}, "cannot stand for"),
        ({"token_rate": float("nan")}, "token_rate"),
    ],
)
def test_writing_refuses_wrong_values(tmp_path, changes, reason):
    file = dataclasses.replace(make(some_tokens(50) % 4096), **changes)
    with pytest.raises(TokenError, match=reason):
        save_tokens(tmp_path / "a.focal", file)
    with pytest.raises(TokenError, match="only .focal files"):
        save_tokens(tmp_path / "a.npz", file, entropy=True)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    before = written(tmp_path, make(some_tokens(50)))

    def broken(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(bitstream.zlib, "crc32", broken)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, make(some_tokens(60)))
    (only,) = tmp_path.iterdir()
    assert only.read_bytes() == before


def check_mutant(path, data):
    """Only the error, or a file that is well-formed, and soon."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        file = load_tokens(path)
    except TokenError as error:
        assert str(path) in str(error)
        return False
    finally:
        assert time.process_time() - start < 10
    assert 1 <= len(file.toks) <= MAX_TOKENS
    assert 0 <= file.toks.min() and file.toks.max() < file.codebook_size
    assert abs(file.duration * file.token_rate - len(file.toks)) <= 16
    # The result can be written again.
    save_tokens(path, file)
    assert torch.equal(load_tokens(path).toks, file.toks)
    return True


def mutants(tmp_path, entropy, sealed):
    toks = np.tile(some_tokens(20), 30)
    data = written(tmp_path, make(toks, rate=16000), entropy=entropy)
    assert read_header(tmp_path / "whole.focal").entropy_coded == entropy
    if not sealed:
        return damaged(data)
    body = damaged(data[:-4])
    shorter = st.builds(lambda d, n: d[: len(d) - n], body, st.integers(0, 9))
    return (body | shorter).map(seal)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_some_mutants(tmp_path, entropy, sealed):
    @settings(PROPERTY, max_examples=100)
    @given(data=mutants(tmp_path, entropy, sealed))
    def check(data):
        check_mutant(tmp_path / "mutant.focal", data)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_many_mutants(tmp_path, entropy, sealed):
    accepted = []

    @settings(PROPERTY, max_examples=4000, derandomize=False)
    @given(data=mutants(tmp_path, entropy, sealed))
    def check(data):
        accepted.append(check_mutant(tmp_path / "mutant.focal", data))

    check()
    assert len(accepted) > 1000
    # With a checksum of its own a mutant may be another file; else never,
    # but for those that are the file itself.
    assert any(accepted) or not sealed
