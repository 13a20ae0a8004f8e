"""deploy/images/Dockerfile, its steps run one by one in a bare folder: what the image will hold.

Owns a reading of the file as far as it goes: COPY from a clean export of the tree through
.dockerignore, RUN in a shell, paths of the image under a folder of the test. Two kinds of step are
replaced, as other tests hold them: requirements are not downloaded again but taken from this
environment (their lock file must have been copied), and Debian's packages are not installed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, tracked_files

DOCKERFILE = ROOT / "deploy/images/Dockerfile"
STEP_SECONDS = 120.0
_IMAGE_PATH = re.compile(r"(?<![\w./-])/(opt|src|jobs)\b")

pytestmark = pytest.mark.timeout(300)


def steps() -> Iterator[tuple[str, str]]:
    """Instruction and rest of each line, comments and empty lines left out."""
    for line in DOCKERFILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert not line.endswith("\\"), "this reading knows no continued lines"
            word, _, rest = line.partition(" ")
            yield word, rest


def context(folder: Path) -> Path:
    """What is sent to the builder: tracked files that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    for path in tracked_files():
        name = path.as_posix()
        if any(name == wanted or name.startswith(f"{wanted}/") for wanted in let_through):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target)
    return folder


class Image:
    """The folders of the image under one folder."""

    def __init__(self, root: Path, sent: Path) -> None:
        self.root = root
        self._sent = sent
        self._env = {
            "PATH": os.environ["PATH"], "HOME": str(root), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def here(self, text: str) -> str:
        """`text` with the image's paths as paths below this folder."""
        return _IMAGE_PATH.sub(lambda found: f"{self.root}/{found[1]}", text)

    def copy(self, words: list[str]) -> None:
        *sources, target = words
        to = Path(self.here(target))
        for source in sources:
            found = self._sent / source
            assert found.exists(), f"COPY {source}: not in the tree, or .dockerignore keeps it out"
            if found.is_dir():
                shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True)
            else:
                single = to / source if target.endswith("/") else to
                single.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, single)

    def run(self, command: str) -> None:
        if command.startswith("apt-get"):
            return
        if "-r " in command:
            self._take_requirements(command)
            return
        # The compiled core has a test of its own, test_native_build.py.
        command = self.here(command.replace("TIDEMILL_NATIVE=1", "TIDEMILL_NATIVE=0"))
        command = re.sub(r"^python\b", shlex.quote(sys.executable), command)
        done = subprocess.run(
            command, shell=True, cwd=self.root, env=self._env, capture_output=True, text=True,
            timeout=STEP_SECONDS, check=False,
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout}\n{done.stderr}"

    def _take_requirements(self, command: str) -> None:
        lock = Path(self.here(command.split("-r ")[1].split()[0]))
        assert lock.is_file(), command
        assert "--require-hashes" in command
        if "--target" in command:
            return
        (packages,) = (self.root / "opt/tidemill/lib").glob("python*/site-packages")
        taken = sysconfig.get_path("purelib")
        # Without the lines of its .pth files, which name this checkout.
        (packages / "requirements.pth").write_text(f"{taken}\n", encoding="utf-8")

    def tidemill(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The image's entry point, in an empty working folder."""
        jobs = self.root / "jobs"
        jobs.mkdir(exist_ok=True)
        return subprocess.run(
            [self.root / "opt/tidemill/bin/tidemill", *words], cwd=jobs, env=self._env,
            capture_output=True, text=True, timeout=STEP_SECONDS, check=False,
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    root = tmp_path_factory.mktemp("image")
    made = Image(root, context(tmp_path_factory.mktemp("sent")))
    stage = 0
    for word, rest in steps():
        stage += word == "FROM"
        if stage > 1:
            continue  # the second stage only takes what the first has made
        if word == "COPY":
            made.copy(rest.split())
        elif word == "RUN":
            made.run(rest)
        else:
            assert word in {"FROM", "ENV"}, word
    return made


def test_the_image_runs_each_role_without_the_sources(image: Image) -> None:
    shutil.rmtree(image.root / "src")
    for role in ("ledger", "worker", "sink", "api", "topics"):
        told = image.tidemill(role, "--help")
        assert told.returncode == 0, told.stderr
    found = image.tidemill("config", "--json")
    assert found.returncode == 0, found.stderr
    packages = next((image.root / "opt/tidemill/lib").glob("python*/site-packages"))
    assert (packages / "tidemill").is_dir()


def test_the_second_stage_takes_what_the_first_has_made() -> None:
    told = list(steps())
    second = told[[word for word, _ in told].index("FROM", 1):]
    assert ("COPY", "--from=build /opt/tidemill /opt/tidemill") in second
    assert ("ENTRYPOINT", '["tidemill"]') in second
    user = [rest for word, rest in second if word == "USER"]
    assert user == ["10001"], "never root"
