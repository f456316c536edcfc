"""Token files: exact both ways, and closed to anything damaged."""

import dataclasses
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.tokens.files import (
    TokenFile,
    load_tokens,
    save_tokens,
)

PROPERTY = settings(
    derandomize=True,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def make(num_tokens=50, **changes):
    toks = torch.arange(num_tokens) * 131 % 8192
    values = {
        "toks": toks,
        "model": "focalcodec_mini_50hz",
        "fingerprint": "0123456789abcdef" * 4,
        "num_samples": num_tokens * 320 + 7,
        "sample_rate": 16000,
        "codebook_size": 8192,
        "token_rate": 50.0,
    }
    return TokenFile(**{**values, **changes})


def same(one, other):
    return torch.equal(one.toks, other.toks) and all(
        getattr(one, name.name) == getattr(other, name.name)
        for name in dataclasses.fields(TokenFile)
        if name.name != "toks"
    )


def arrays_of(path):
    with np.load(path) as archive:
        return {key: archive[key] for key in archive}


@PROPERTY
@given(
    toks=st.lists(st.integers(0, 2**17 - 1), min_size=1, max_size=100),
    codebook_size=st.sampled_from([2**11, 2**13, 2**16, 2**17]),
)
def test_tokens_read_back(tmp_path, toks, codebook_size):
    toks = torch.tensor(toks) % codebook_size
    file = make(len(toks), toks=toks, codebook_size=codebook_size)
    save_tokens(tmp_path / "a.npz", file)
    back = load_tokens(tmp_path / "a.npz")
    assert back.toks.dtype == torch.int64
    assert same(back, file)
    stored = arrays_of(tmp_path / "a.npz")["toks"].dtype
    assert stored == (np.uint16 if codebook_size <= 2**16 else np.uint32)


def test_equal_content_makes_equal_files(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_tokens(tmp_path / name, make())
    assert (tmp_path / "a.npz").read_bytes() == (
        tmp_path / "b.npz"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.npz", "b.npz")
    ]


@PROPERTY
@given(
    damage=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_damaged_bytes_are_refused(tmp_path, damage):
    path = tmp_path / "whole.npz"
    save_tokens(path, make())
    data = bytearray(path.read_bytes())
    for position, byte in damage:
        data[position % len(data)] = byte
    path = tmp_path / "damaged.npz"
    path.write_bytes(data)
    try:
        file = load_tokens(path)
    except TokenError as error:
        assert "damaged.npz" in str(error)
    else:
        # Such as a time stamp in the archive, which is not read.
        assert same(file, make())


@PROPERTY
@given(cut=st.integers(0, 3000), data=st.binary(max_size=50))
def test_cut_files_are_refused(tmp_path, cut, data):
    path = tmp_path / "cut.npz"
    save_tokens(path, make())
    whole = path.read_bytes()
    part = whole[: cut % len(whole)]
    for content in (part, data, part + data):
        if content == whole:
            continue
        path.write_bytes(content)
        with pytest.raises(TokenError, match="cut.npz"):
            load_tokens(path)


def test_changed_bytes_keep_the_tokens_or_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    save_tokens(path, make(5))
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole)):
        data = bytearray(whole)
        data[position] ^= 0xFF
        path.write_bytes(data)
        try:
            assert same(load_tokens(path), make(5))
        except TokenError:
            refused += 1
    assert refused > len(whole) / 2


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    save_tokens(path, make())
    arrays = arrays_of(path)
    arrays["toks"] = np.zeros(2**23, dtype="<u2")
    np.savez_compressed(path, **arrays)
    assert path.stat().st_size < 2**20
    with pytest.raises(TokenError, match="compressed"):
        load_tokens(path)


def test_a_claimed_shape_is_not_allocated(tmp_path):
    path = tmp_path / "huge.npz"
    save_tokens(path, make())
    entries = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entries[name] = archive.read(name)
    head = entries["toks.npy"]
    text = (
        head[10:].split(b"\n")[0].rstrip().replace(b"(50,)", b"(9999999999,)")
    )
    entries["toks.npy"] = (
        head[:8] + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(100)
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(TokenError, match="not as long as its header says"):
        load_tokens(path)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "large.npz"
    with open(path, "wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(TokenError, match="more than"):
        load_tokens(path)


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "evil.npz"
    save_tokens(path, make())
    arrays = arrays_of(path)
    arrays["model"] = np.array(Marker(marker), dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(TokenError, match="evil.npz"):
        load_tokens(path)
    path.write_bytes(pickle.dumps(Marker(marker)))
    with pytest.raises(TokenError, match="evil.npz"):
        load_tokens(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"toks": None},
        {"extra": np.array(1)},
        {"toks": np.zeros(50, dtype="<i8")},
        {"toks": np.zeros((5, 10), dtype="<u2")},
        {"num_samples": np.array(1.5)},
        {"num_samples": np.array([16000])},
        {"model": np.array(b"bytes")},
        {"fingerprint": np.array("no hash")},
        {"toks": np.full(50, 8192, dtype="<u2")},
        {"num_samples": np.array(2**40)},
        {"token_rate": np.array(np.nan)},
    ],
    ids=lambda change: "-".join(change),
)
def test_other_content_is_refused(tmp_path, change):
    path = tmp_path / "other.npz"
    save_tokens(path, make())
    arrays = {**arrays_of(path), **change}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(TokenError, match="other.npz"):
        load_tokens(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toks": torch.zeros(0).long()}, "number of tokens"),
        ({"toks": torch.zeros(50)}, "int64"),
        ({"toks": torch.full((50,), -1)}, "not within 0..8191"),
        ({"toks": torch.full((50,), 8192)}, "not within 0..8191"),
        ({"model": ""}, "model"),
        ({"fingerprint": "0" * 63}, "fingerprint"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"token_rate": 0.0}, "token_rate"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 160000}, "cannot stand for 160000 samples"),
    ],
)
def test_saving_refuses_wrong_values(tmp_path, change, message):
    path = tmp_path / "a.npz"
    with pytest.raises(TokenError, match=message):
        save_tokens(path, make(**change))
    assert not path.exists()


def test_names_are_checked(tmp_path):
    with pytest.raises(TokenError, match="must end in .focal or .npz"):
        save_tokens(tmp_path / "a.tok", make())
    with pytest.raises(TokenError, match="no such file"):
        load_tokens(tmp_path / "missing.npz")
