"""Features between two passes: memory, disk and cleaning up."""

import resource
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import FocalCodecError
from speechbrain_focalcodec.long_audio import spool as spool_module
from speechbrain_focalcodec.long_audio.spool import Spool

CODEC = FocalCodec.from_pretrained("focalcodec_mini_50hz")
SIG = 0.1 * torch.randn(2, 16000 * 6)
TOKS = torch.zeros(2, 300, dtype=torch.int64)


@pytest.fixture
def files(monkeypatch):
    """All temporary files that are made; on disk from the first byte on."""
    made = []

    class Recorded(tempfile.SpooledTemporaryFile):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Recorded)
    monkeypatch.setattr(spool_module, "IN_MEMORY", 1)
    return made


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.sampled_from([1, 64, 1 << 20]),
    st.data(),
)
def test_written_frames_are_read_back(lengths, dtype, in_memory, data):
    rows = [torch.randn(num, 3).to(dtype) for num in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "IN_MEMORY", in_memory)
        with Spool(lengths) as spool:
            for row in rows:
                cut = data.draw(st.integers(0, len(row)))
                spool.append(row[:cut])
                spool.append(row[cut:])
            for i, row in enumerate(rows):
                start = data.draw(st.integers(0, len(row) - 1))
                stop = data.draw(st.integers(start + 1, len(row)))
                got = spool.read(i, start, stop)
                assert got.dtype == dtype
                assert torch.equal(got, row[start:stop])


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(spool_module, "IN_MEMORY", 5000)
    with Spool([100]) as spool:
        for _ in range(10):
            assert not spool._file._rolled
            spool.append(torch.zeros(10, 12))
        spool.append(torch.zeros(10, 12))
        assert spool._file._rolled


@torch.no_grad()
@pytest.mark.parametrize(
    "call",
    [
        lambda: CODEC.encode(SIG, window=2, context=0),
        lambda: CODEC.decode(TOKS, window=2),
        lambda: list(CODEC.decode_stream(TOKS[0], window=2)),
        # A stream that nobody reads to its end.
        lambda: next(CODEC.decode_stream(TOKS[0], window=2)),
    ],
)
def test_temporary_files_are_removed(call, files):
    call()
    assert len(files) >= 2
    assert all(file._rolled and file.closed for file in files)


def test_one_layer_at_a_time_is_stored(files, monkeypatch):
    """A spool is closed when the next one is full."""
    pieces = CODEC.decode_stream(TOKS[0], window=2)
    next(pieces)
    assert [file.closed for file in files] == [True, False]
    pieces.close()
    assert all(file.closed for file in files)


def test_temporary_files_are_removed_after_an_error(files):
    def read(start, stop):
        if start > 50000:
            raise RuntimeError("unplugged")
        return SIG[0, start:stop]

    with pytest.raises(RuntimeError, match="unplugged"):
        CODEC.encode_stream(read, SIG.shape[1], window=2, context=0)
    assert len(files) == 1 and files[0]._rolled and files[0].closed


def test_a_single_window_is_not_spooled(files):
    CODEC.encode(SIG, torch.tensor([16000, 20000]), batch_size=1)
    CODEC.decode(TOKS, batch_size=1)
    assert not files


def test_missing_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(spool_module, "IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FocalCodecError, match=r"gone cannot hold.*TMPDIR"):
        CODEC.encode(SIG, window=2, context=0)


def test_full_disk(files, monkeypatch, tmp_path):
    """The kernel refuses to make a file larger."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50000, hard))
    try:
        with pytest.raises(FocalCodecError) as caught:
            CODEC.encode(SIG, window=2, context=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(caught.value)
    assert "TMPDIR" in str(caught.value)
    assert files[0].closed and not list(tmp_path.iterdir())
