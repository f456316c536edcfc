"""Metadata, lock file and package data fit each other."""

import configparser
import fnmatch
import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from torch.torch_version import TorchVersion

import speechbrain_focalcodec
from speechbrain_focalcodec.errors import InstallationError
from speechbrain_focalcodec.utils.extras import import_torchaudio

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "speechbrain_focalcodec"


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text):
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.fixture(scope="module")
def extras(config):
    return {
        name: requirements(text)
        for name, text in config["options.extras_require"].items()
    }


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text().split("\n")
    return dict(line.split("==") for line in lines if line)


def test_metadata(config):
    metadata = config["metadata"]
    assert metadata["name"] == "speechbrain_focalcodec"
    assert metadata["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    # The package states its version, alone.
    module, _, name = metadata["version"].partition(":")[2].rpartition(".")
    assert getattr(importlib.import_module(module.strip()), name) == (
        speechbrain_focalcodec.__version__
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", speechbrain_focalcodec.__version__)
    assert "3.10" in SpecifierSet(config["options"]["python_requires"])
    assert "3.9" not in SpecifierSet(config["options"]["python_requires"])


def test_changelog_and_citation_are_of_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(.+?)\](.*)$", changelog, re.M)
    assert releases[0] == ("Unreleased", "")
    assert releases[1][0] == speechbrain_focalcodec.__version__
    for _, date in releases[1:]:
        assert re.fullmatch(r" - \d{4}-\d\d-\d\d", date)
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["version"] == speechbrain_focalcodec.__version__
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for paper in citation["references"]:
        assert paper["url"] in readme
        assert paper["title"] in re.sub(r"\s+", " ", readme)


def test_torch_and_torchaudio_are_a_pair(config):
    core = {
        item.name: item.specifier
        for item in requirements(config["options"]["install_requires"])
    }
    # torchaudio 2.11.1 admits torch 2.11.0, with which it does not load;
    # 2.11.0 asks for no torch, and loads with 2.11.0 alone.
    assert "2.11.0" not in core["torch"]
    assert "2.11.0" not in core["torchaudio"]
    for release in ("2.7.1", "2.10.0"):
        assert release in core["torch"] and release in core["torchaudio"]
    # Neither has an upper bound.
    assert "99.0" in core["torch"] and "99.0" in core["torchaudio"]


@pytest.mark.parametrize(
    ("torch_version", "command"),
    [
        ("2.9.1+cpu", "pip install 'torchaudio==2.9.1'"),
        ("2.11.0+cu130", "pip install 'torchaudio==2.11.0'"),
        ("2.14.1", "pip install 'torchaudio>=2.11.1'"),
    ],
)
@pytest.mark.parametrize("error", ["OSError", "RuntimeError"])
def test_a_torchaudio_that_does_not_load_is_named(
    tmp_path, monkeypatch, torch_version, command, error
):
    (tmp_path / "torchaudio.py").write_text(f"raise {error}('symbol')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    monkeypatch.setattr(torch, "__version__", TorchVersion(torch_version))
    with pytest.raises(InstallationError) as caught:
        import_torchaudio()
    assert str(caught.value) == (
        f"torchaudio {version('torchaudio')} does not load with torch "
        f"{torch_version}; install one that does: {command}"
    )


def test_a_command_says_so_in_one_line(tmp_path):
    (tmp_path / "torchaudio.py").write_text("raise OSError('symbol')\n")
    script = Path(sys.executable).parent / "focalcodec"
    run = subprocess.run(
        [script, "info"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "does not load with torch" in line and "pip install" in line


def test_ranges_are_loose(config, extras):
    core = requirements(config["options"]["install_requires"])
    for item in [*core, *(item for group in extras.values() for item in group)]:
        operators = {specifier.operator for specifier in item.specifier}
        assert operators <= {">=", "<", "!="}, f"{item} is pinned"
        assert item.url is None


def test_extras_refer_to_each_other(extras):
    users = {*"entropy evaluate live onnx ray tensorboard tts".split()}
    parts = {*"benchmark metrics mos paper pesq speaker whisper".split()}
    for name, wanted in {
        "all": {*users, "wandb"},
        "test": users,
        "evaluate": parts,
        "tts": {"speaker"},
    }.items():
        (own,) = [item for item in extras[name] if item.name == PACKAGE.name]
        assert own.extras == wanted <= set(extras)
    # Whoever asks for all has each of them.
    assert users | parts | {"wandb", "all", "test"} == set(extras)


def test_messages_name_extras_that_install_the_module(extras):
    calls = {
        call
        for path in PACKAGE.rglob("*.py")
        for call in re.findall(
            r'import_extra\(\s*"([\w.]+)", "(\w+)"\s*\)', path.read_text()
        )
    }
    assert len(calls) > 10
    others = {"whisper": "openai-whisper", "swift_f0": "swift-f0"}
    for module, extra in calls - {("json", "metrics")}:  # an example
        module = module.partition(".")[0]
        names = {item.name for item in extras[extra]}
        assert others.get(module, module) in names, f"{module}: {extra}"


def test_lock_has_exact_versions_alone():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        # Neither an option, a URL, a path nor a marker.
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def test_lock_satisfies_the_metadata(config, extras, lock):
    wanted = requirements(config["options"]["install_requires"])
    # What the tests use: they do without wandb.
    groups = set(extras) - {"wandb"}
    wanted += [item for name in groups for item in extras[name]]
    for item in wanted:
        name = canonicalize_name(item.name)
        if name != canonicalize_name(PACKAGE.name):
            assert name in lock, f"{name} is not in the lock: make lock"
            assert lock[name] in item.specifier, f"{item}: make lock"


def test_console_scripts_exist(config):
    scripts = config["options.entry_points"]["console_scripts"].split("\n")
    targets = dict(line.split(" = ") for line in scripts if line)
    assert set(targets) == {"focalcodec"}
    for target in targets.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_package_data_is_whole(config):
    patterns = config["options.package_data"][PACKAGE.name].split()
    files = [
        str(path.relative_to(PACKAGE))
        for folder in ("assets", "models")
        for path in (PACKAGE / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    files.append("py.typed")
    assert (PACKAGE / "py.typed").is_file()
    for pattern in patterns:
        assert fnmatch.filter(files, pattern), f"nothing matches {pattern}"
    for file in files:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), (
            f"{file} would be missing in the wheel"
        )


def test_every_folder_with_code_is_a_package():
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("test", 'pytest -q -m "not slow"'),
        ("test-fast", 'pytest -q -m "not slow"'),
        ("test-slow", "pytest -q -m slow"),
        ("demo", 'focalcodec demo  "my clip.wav"'),
        (
            "benchmark-mini",
            '--model "focalcodec_mini_50hz" '
            '--model "focalcodec_mini_50hz_causal"',
        ),
        ("benchmark-mini", 'focalcodec evaluate "my data"'),
    ],
)
def test_make_runs(target, command):
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MAKE")
        and name not in ("MODEL", "MODELS", "AUDIO")
    }
    plan = subprocess.run(
        ["make", "--dry-run", target, "AUDIO=my clip.wav", "DATA=my data"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert command in plan.stdout
    for path in re.findall(r"tests/\w+\.py", plan.stdout):
        assert (ROOT / path).is_file(), path


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
