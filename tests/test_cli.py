"""The command line: files, folders, and bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from speechbrain_focalcodec import __version__, model_files
from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.tokens.files import (
    TokenFile,
    load_tokens,
    save_tokens,
)

PARITY = Path(__file__).parent / "parity"
OFFLINE, CAUSAL = PARITY / "offline_50hz", PARITY / "causal_50hz"


def focalcodec(*arguments, model=OFFLINE):
    """Run a command on the CPU with a tiny model."""
    arguments = [str(argument) for argument in arguments]
    return CliRunner().invoke(
        app, [*arguments, "--model", str(model), "--device", "cpu"]
    )


def noise(num_samples=8000):
    generator = torch.Generator().manual_seed(num_samples)
    return 0.1 * torch.randn(num_samples, generator=generator)


def tree(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


@pytest.fixture
def corpus(tmp_path):
    """Three good files in a tree."""
    folder = tmp_path / "corpus"
    write_audio(folder / "a.wav", noise(8001), 16000)
    write_audio(folder / "sub" / "b.flac", noise(12345), 44100)
    write_audio(folder / "sub" / "deep" / "c.ogg", noise(9000), 24000)
    return folder


@pytest.fixture
def bad_files(corpus):
    """Files that must be refused, in the same tree."""
    whole = (corpus / "a.wav").read_bytes()
    (corpus / "cut.wav").write_bytes(whole[:5000])
    (corpus / "empty.wav").touch()
    (corpus / "noise.mp3").write_bytes(b"not audio")
    (corpus / "absurd.wav").write_bytes(
        whole[:24] + b"\xff\xff\xff\x7f" + whole[28:]
    )
    samples = np.full(100, np.nan)
    soundfile.write(corpus / "nan.wav", samples, 16000, subtype="FLOAT")
    return ["absurd.wav", "cut.wav", "empty.wav", "nan.wav", "noise.mp3"]


@pytest.mark.parametrize(("model", "rate"), [(OFFLINE, 16000), (CAUSAL, 24000)])
def test_a_file_goes_to_tokens_and_back(tmp_path, model, rate):
    write_audio(tmp_path / "a.wav", noise(8001), 16000)
    for command, source, target in (
        ("encode", "a.wav", "a.focal"),
        ("decode", "a.focal", "b.wav"),
        ("resynthesize", "a.wav", "c.wav"),
    ):
        result = focalcodec(
            command, tmp_path / source, tmp_path / target, model=model
        )
        assert result.exit_code == 0, result.output
        assert result.output == ""
    sig, sample_rate = read_audio(tmp_path / "b.wav")
    assert sample_rate == rate
    assert len(sig) == -(-8001 * rate // 16000)
    assert torch.equal(sig, read_audio(tmp_path / "c.wav")[0])


def test_a_file_goes_into_a_folder(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    assert (
        focalcodec("encode", corpus / "a.wav", tmp_path / "out").exit_code == 0
    )
    assert tree(tmp_path / "out") == ["a.focal"]


def test_a_name_without_a_suffix_is_a_new_folder(corpus, tmp_path):
    out = tmp_path / "new"
    assert focalcodec("encode", corpus / "a.wav", out).exit_code == 0
    assert tree(out) == ["a.focal"]
    for name in ("b.focal", "b.npz"):
        result = focalcodec("encode", corpus, tmp_path / name)
        assert result.exit_code == 1
        assert f"{name}: is a file's name, but" in result.stderr


def test_folders_keep_their_tree(corpus, tmp_path):
    result = focalcodec("encode", corpus, tmp_path / "toks")
    assert result.exit_code == 0, result.output
    assert (
        "encode: 3 done, 0 skipped (output exists), 0 failed" in result.stdout
    )
    assert tree(tmp_path / "toks") == [
        *("a.focal", "sub/b.focal", "sub/deep/c.focal")
    ]
    assert (
        focalcodec("decode", tmp_path / "toks", tmp_path / "rec").exit_code == 0
    )
    assert tree(tmp_path / "rec") == ["a.wav", "sub/b.wav", "sub/deep/c.wav"]
    assert focalcodec("resynthesize", corpus, tmp_path / "rs").exit_code == 0
    assert tree(tmp_path / "rs") == tree(tmp_path / "rec")
    for name in tree(tmp_path / "rs"):
        assert (tmp_path / "rs" / name).read_bytes() == (
            tmp_path / "rec" / name
        ).read_bytes()


def test_existing_outputs_are_kept_unless_told(corpus, tmp_path):
    out = tmp_path / "toks"
    focalcodec("encode", corpus, out)
    (out / "a.focal").write_text("mine")
    result = focalcodec("encode", corpus, out)
    assert result.exit_code == 0
    assert "0 done, 3 skipped" in result.stdout
    result = focalcodec("encode", corpus / "a.wav", out / "a.focal")
    assert result.exit_code == 1
    assert "a.focal: exists; give --overwrite" in result.stderr
    assert (out / "a.focal").read_text() == "mine"
    result = focalcodec("encode", corpus, out, "--overwrite")
    assert "3 done, 0 skipped" in result.stdout
    assert load_tokens(out / "a.focal").num_samples == 8001


@pytest.mark.parametrize("command", ["encode", "resynthesize"])
def test_a_folder_run_goes_on_after_failures(
    corpus, bad_files, tmp_path, command
):
    result = focalcodec(command, corpus, tmp_path / "out")
    assert result.exit_code == 1
    assert "3 done" in result.stdout and "5 failed" in result.stdout
    assert len(tree(tmp_path / "out")) == 3
    lines = result.stderr.splitlines()
    summary = lines[lines.index("failed:") + 1 :]
    assert len(summary) == len(bad_files)
    for name, line in zip(bad_files, summary, strict=True):
        assert line.startswith(f"  {corpus / name}: ")


@pytest.mark.parametrize("command", ["encode", "resynthesize"])
def test_a_bad_file_gives_one_error_line(corpus, bad_files, tmp_path, command):
    suffix = ".focal" if command == "encode" else ".wav"
    for name in [*bad_files, "missing.wav"]:
        out = tmp_path / f"out{suffix}"
        result = focalcodec(command, corpus / name, out)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {corpus / name}: ")
        assert not out.exists()


@pytest.mark.parametrize("suffix", [".focal", ".npz"])
def test_bad_token_files_are_refused(tmp_path, suffix):
    model = PretrainedFocalCodec.from_pretrained(
        OFFLINE, run_opts={"device": "cpu"}
    )
    write_audio(tmp_path / "a.wav", noise(), 16000)
    good = model.tokenize_file(tmp_path / "a.wav")
    folder = tmp_path / "toks"
    save_tokens(folder / f"a_good{suffix}", good)
    save_tokens(
        folder / f"b_other{suffix}",
        dataclasses.replace(good, fingerprint="0" * 64, model="other_model"),
    )
    # Well-formed, with a token that this model does not have.
    save_tokens(
        folder / f"c_range{suffix}",
        dataclasses.replace(good, toks=good.toks + 32, codebook_size=64),
    )
    data = bytearray((folder / f"a_good{suffix}").read_bytes())
    data[min(200, len(data) - 9)] ^= 0xFF
    (folder / f"d_damaged{suffix}").write_bytes(data)
    (folder / f"e_text{suffix}").write_text("no tokens")

    reasons = {
        "b_other": f"than offline_50hz ({good.fingerprint[:16]})",
        "c_range": "codebook_size of 64",
        "d_damaged": "damaged",
        "e_text": "damaged",
    }
    for name, reason in reasons.items():
        path = folder / f"{name}{suffix}"
        result = focalcodec("decode", path, tmp_path / "out.wav")
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {path}: ") and reason in line
        assert not (tmp_path / "out.wav").exists()

    result = focalcodec("decode", folder, tmp_path / "out")
    assert result.exit_code == 1
    assert "1 done, 0 skipped (output exists), 4 failed" in result.stdout
    assert tree(tmp_path / "out") == ["a_good.wav"]


def encode_by_format(corpus, target, *options):
    result = focalcodec("encode", corpus, target, *options)
    assert result.exit_code == 0, result.output
    return target


def test_all_formats_decode_to_the_same_audio(corpus, tmp_path):
    plain = encode_by_format(corpus, tmp_path / "plain")
    coded = encode_by_format(corpus, tmp_path / "coded", "--entropy")
    arrays = encode_by_format(corpus, tmp_path / "npz", "--format", "npz")
    assert tree(arrays) == ["a.npz", "sub/b.npz", "sub/deep/c.npz"]
    first = load_tokens(plain / "sub" / "b.focal")
    assert (first.num_samples, first.sample_rate) == (12345, 44100)
    # One of the folders has both formats.
    shutil.move(coded / "sub" / "b.focal", arrays / "sub" / "b.focal")
    shutil.move(arrays / "sub" / "b.npz", coded / "sub" / "b.npz")
    for folder in (plain, coded, arrays):
        result = focalcodec("decode", folder, tmp_path / "out" / folder.name)
        assert "3 done, 0 skipped" in result.stdout
    for name in tree(tmp_path / "out" / "plain"):
        want = (tmp_path / "out" / "plain" / name).read_bytes()
        for folder in ("coded", "npz"):
            assert (tmp_path / "out" / folder / name).read_bytes() == want


def test_the_name_or_the_option_decides_the_format(corpus, tmp_path):
    source = corpus / "a.wav"
    encode_by_format(source, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes()[:2] == b"PK"
    encode_by_format(source, tmp_path / "b.focal", "--format", "focal")
    assert (tmp_path / "b.focal").read_bytes()[:4] == b"FOCL"
    for target, options, code, message in (
        ("c.npz", ("--format", "focal"), 1, "must end in .focal"),
        ("c.focal", ("--format", "npz"), 1, "must end in .npz"),
        ("c.npz", ("--entropy",), 2, "only .focal files are entropy-coded"),
        ("c", ("--entropy", "--format", "npz"), 2, "only .focal files"),
        ("c.focal", ("--format", "zip"), 2, "'zip' is not one of"),
    ):
        result = focalcodec("encode", source, tmp_path / target, *options)
        assert result.exit_code == code
        assert message in " ".join(result.stderr.replace("│", " ").split())
    assert tree(tmp_path / "corpus") and not (tmp_path / "c").exists()


def test_entropy_coding_without_its_library(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    source, target = corpus / "a.wav", tmp_path / "a.focal"
    result = focalcodec("encode", source, target, "--entropy")
    assert result.exit_code == 2
    assert "speechbrain_focalcodec[entropy]" in result.stderr
    assert focalcodec("encode", source, target).exit_code == 0
    assert focalcodec("decode", target, tmp_path / "a.wav").exit_code == 0


def test_info_tells_what_a_token_file_holds(corpus, tmp_path):
    for name in ("a.focal", "a.npz"):
        encode_by_format(corpus / "sub" / "b.flac", tmp_path / name)
        result = CliRunner().invoke(
            app, ["info", str(tmp_path / name), "--json"]
        )
        facts = json.loads(result.stdout)
        file = load_tokens(tmp_path / name)
        assert facts == {
            "format": name[2:],
            "entropy_coded": False,
            "size": (tmp_path / name).stat().st_size,
            "model": file.model or None,
            "fingerprint": file.fingerprint,
            "sample_rate": 44100,
            "num_samples": 12345,
            "duration": round(12345 / 44100, 6),
            "num_tokens": len(file.toks),
            "token_rate": 50.0,
            "codebook_size": file.codebook_size,
            "bitrate": facts["bitrate"],
        }
    result = CliRunner().invoke(app, ["info", str(tmp_path / "a.focal")])
    assert "44100 Hz" in result.stdout and "not stored" in result.stdout
    (tmp_path / "a.focal").write_text("text")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "a.focal")])
    assert result.exit_code == 1
    assert "a.focal: not a .focal file" in result.stderr


def test_outputs_that_cannot_be_are_refused(corpus, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "nothing").mkdir()
    for command, source, target, message in (
        ("encode", corpus / "a.wav", tmp_path / "a.tok", "must end in .focal"),
        ("decode", tmp_path / "a.npz", tmp_path / "a.wav", "no such file"),
        ("decode", tmp_path / "a.focal", tmp_path / "a.wav", "no such file"),
        ("encode", corpus, tmp_path / "file", "is a file, but"),
        ("encode", tmp_path / "nothing", tmp_path / "out", "has no files"),
        ("encode", corpus / "a.wav", tmp_path / "file" / "a.focal", "file"),
    ):
        result = focalcodec(command, source, target)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and message in line


def test_inputs_are_never_overwritten(corpus):
    before = (corpus / "a.wav").read_bytes()
    result = focalcodec(
        "resynthesize", corpus / "a.wav", corpus / "a.wav", "--overwrite"
    )
    assert result.exit_code == 1
    assert "overwritten by its own output" in result.stderr
    result = focalcodec("resynthesize", corpus, corpus, "--overwrite")
    assert result.exit_code == 1
    assert "2 done, 0 skipped (output exists), 1 failed" in result.stdout
    assert (corpus / "a.wav").read_bytes() == before


def test_an_output_is_never_another_input(corpus):
    shutil.copy(corpus / "sub" / "b.flac", corpus / "a.flac")
    before = (corpus / "a.wav").read_bytes()
    result = focalcodec("resynthesize", corpus, corpus, "--overwrite")
    assert result.exit_code == 1
    assert (corpus / "a.wav").read_bytes() == before
    assert (
        f"{corpus / 'a.flac'}: its output {corpus / 'a.wav'} is an input"
        in (result.stderr)
    )


def test_outputs_below_the_input_are_no_input(corpus):
    for done in (3, 0):
        result = focalcodec("resynthesize", corpus, corpus / "out")
        assert result.exit_code == 0, result.output
        assert f"{done} done, {3 - done} skipped" in result.stdout
    assert not (corpus / "out" / "out").exists()


@pytest.mark.parametrize("suffix", [".focal", ".npz"])
@pytest.mark.parametrize(
    ("name", "value"), [("token_rate", 0.5), ("codebook_size", 64)]
)
def test_a_token_file_must_claim_what_its_model_is(
    tmp_path, name, value, suffix
):
    model = PretrainedFocalCodec.from_pretrained(OFFLINE)
    codec = model.codec
    facts = {
        "sample_rate": 44100,
        "token_rate": codec.token_rate,
        "codebook_size": codec.codebook_size,
        name: value,
    }
    num_samples = round(50 / facts["token_rate"] * facts["sample_rate"])
    path = tmp_path / f"a{suffix}"
    save_tokens(
        path,
        TokenFile(
            toks=torch.zeros(50, dtype=torch.int64),
            model=codec.name,
            fingerprint=codec.fingerprint,
            num_samples=num_samples,
            **facts,
        ),
    )
    result = focalcodec("decode", path, tmp_path / "a.wav")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"a{suffix}: claims a {name} of {value}" in line
    assert not (tmp_path / "a.wav").exists()


def test_two_files_never_share_an_output(corpus, tmp_path):
    shutil.copy(corpus / "sub" / "b.flac", corpus / "a.flac")
    result = focalcodec("encode", corpus, tmp_path / "out")
    assert result.exit_code == 1
    assert "3 done" in result.stdout and "1 failed" in result.stdout
    assert f"{corpus / 'a.wav'}: its output" in result.stderr


def test_bad_models_and_devices_are_named(corpus, tmp_path):
    arguments = ("encode", corpus / "a.wav", tmp_path / "a.focal")
    result = focalcodec(*arguments, model="no_such_model")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "no_such_model" in line
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "warp"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "warp" in line and "--device" in line


def test_version_and_short_help():
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"focalcodec {__version__}\n"
    for arguments in (["-h"], ["encode", "-h"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0 and "Usage: " in result.stdout


def test_quiet_prints_results_and_errors_alone(corpus, tmp_path):
    (corpus / "empty.wav").touch()
    arguments = ["encode", str(corpus), str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["-q", *arguments])
    assert len(tree(tmp_path / "out")) == 3
    assert not result.stdout
    assert all(
        "empty.wav" in line or line == "failed:"
        for line in result.stderr.splitlines()
    )
    result = CliRunner().invoke(app, ["-q", "info", "--json"])
    assert json.loads(result.stdout)["codebook_size"] == 8192


def test_verbose_says_where_an_error_arose(tmp_path):
    arguments = ["encode", str(tmp_path / "no.wav"), str(tmp_path / "a.focal")]
    result = CliRunner().invoke(app, arguments)
    assert "Traceback" not in result.stderr
    result = CliRunner().invoke(app, ["-v", *arguments])
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_ctrl_c_says_what_is_kept(corpus, tmp_path, monkeypatch):
    tokenize_file = PretrainedFocalCodec.tokenize_file
    done = []

    def stop(self, path, *args, **kwargs):
        if done:
            raise KeyboardInterrupt
        done.append(path)
        return tokenize_file(self, path, *args, **kwargs)

    monkeypatch.setattr(PretrainedFocalCodec, "tokenize_file", stop)
    result = focalcodec("encode", corpus, tmp_path / "out")
    assert result.exit_code == 130
    [line] = result.stderr.splitlines()
    assert line.startswith("encode: stopped; 1 of 3 files are done and kept; ")
    assert len(tree(tmp_path / "out")) == 1
    result = focalcodec("encode", corpus / "a.wav", tmp_path / "a.focal")
    assert result.exit_code == 130
    assert result.stderr == "stopped: no unfinished file is left\n"


def test_defects_keep_their_traceback(corpus, tmp_path, monkeypatch):
    def broken(self, path):
        raise RuntimeError("a defect")

    monkeypatch.setattr(PretrainedFocalCodec, "tokenize_file", broken)
    result = focalcodec("encode", corpus, tmp_path / "out")
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize("model", [OFFLINE, CAUSAL])
def test_info_tells_what_a_model_is(model):
    codec = PretrainedFocalCodec.from_pretrained(model).codec
    runner = CliRunner()
    result = runner.invoke(app, ["info", "--model", str(model), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts == {
        "model": codec.name,
        "sample_rate_input": 16000,
        "sample_rate_output": codec.sample_rate_output,
        "token_rate": 50.0,
        "bitrate": codec.bitrate,
        "codebook_size": codec.codebook_size,
        "causal": codec.causal,
        "latency": codec.latency,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "fingerprint": codec.fingerprint,
    }
    result = runner.invoke(app, ["info", "--model", str(model)])
    assert result.exit_code == 0
    for value in facts.values():
        assert value is None or str(value) in result.stdout


def test_the_bundled_model_is_the_default(monkeypatch):
    monkeypatch.setattr(model_files, "DEFAULT_MODEL", str(CAUSAL))
    result = CliRunner().invoke(app, ["info", "--json"])
    assert json.loads(result.stdout)["model"] == "causal_50hz"


def test_help_runs_as_a_module_and_without_torch():
    result = subprocess.run(
        [sys.executable, "-m", "speechbrain_focalcodec.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    for command in ("encode", "decode", "resynthesize", "info"):
        assert command in result.stdout
    code = (
        "import sys; import speechbrain_focalcodec.cli; "
        "sys.exit(bool({'torch', 'speechbrain'} & set(sys.modules)))"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parent.parent,
    )


def test_windows_and_precision_are_options(corpus, tmp_path):
    source = next(corpus.rglob("*.wav"))
    run_ok = ["encode", str(source), str(tmp_path / "a.focal")]
    options = ["--precision", "bf16", "--window", "1", "--context", "0.2"]
    result = CliRunner().invoke(app, [*run_ok, *options])
    assert result.exit_code == 0, result.output
    for options, message in (
        (["--precision", "fp4"], "precision must be one of bf16, int8"),
        (["--window", "0.5", "--context", "1"], "twice the context"),
        (["--window", "-3"], "window must be a number of seconds"),
        (["--batch-size", "0"], "must be at least 1"),
    ):
        result = CliRunner().invoke(
            app, ["encode", str(source), str(tmp_path / "b.focal"), *options]
        )
        assert result.exit_code == 2
        assert message in " ".join(result.output.replace("\u2502", " ").split())
        assert not (tmp_path / "b.focal").exists()
