"""Install a wheel in a new environment and use it there as a new user would.

    python tests/check_install.py WHEEL [REQUIREMENT ...]

Requirements are installed beside the wheel, such as ``torch==2.7.1``. What is
not named is up to pip. The environment is a temporary folder, with the Python
that runs this script. `make test-install` calls it.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIP = "speechbrain_focalcodec/assets/demo.flac"


def snippet() -> str:
    """The first Python of the README, which is to be run at its root."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None and CLIP in found[1]
    return found[1].replace(CLIP, str(ROOT / CLIP))


def main(wheel: str, *requirements: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(f"{folder}/venv", with_pip=True)
        paths = f"{folder}/venv/bin{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": paths}
        env.pop("PYTHONPATH", None)

        def run(*command: str, title: str | None = None) -> None:
            print("$", title or " ".join(command), flush=True)
            subprocess.run(command, cwd=folder, env=env, check=True)

        pip = ("python", "-m", "pip", "--disable-pip-version-check")
        wheel = str(Path(wheel).resolve())
        run(*pip, "install", "--quiet", wheel, *requirements)
        run(*pip, "check")
        run(*pip, "list", "--format=freeze", "--exclude=pip")
        run("focalcodec", "demo")
        run("focalcodec", "encode", str(ROOT / CLIP), "demo.focal")
        run("focalcodec", "decode", "demo.focal", "demo.wav")
        run("python", "-c", snippet(), title="the first Python of README.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
