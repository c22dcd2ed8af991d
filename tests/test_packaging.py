"""What an installation must satisfy: metadata, versions, no compiled operator, Detectron2's repackaging."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mokd_det

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "third_party" / "detectron2"


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", RECIPE / "build_backend.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source_wheel(tmp_path: Path) -> Path:
    """A small wheel with all that must be kept and all that must go."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("detectron2/__init__.py", '__version__ = "0.7.2"\n')
        wheel.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"\x7fELF")
        wheel.writestr("detectron2/model_zoo/configs/Base.yaml", "MODEL: {}\n")
        wheel.writestr("tools/__init__.py", "")
        wheel.writestr("tools/train_net.py", "")
        wheel.writestr("sal_detectron2-0.7.2.dist-info/LICENSE", "Apache License")
        wheel.writestr(
            "sal_detectron2-0.7.2.dist-info/METADATA", "Name: sal-detectron2\nRequires-Dist: numpy<2\n"
        )
        wheel.writestr("sal_detectron2-0.7.2.dist-info/RECORD", "")
    return path


def requirements_of(distribution: str, extras: tuple[str, ...] = ("",)) -> list[Requirement]:
    """The requirements of an installed distribution that apply to this interpreter and these extras."""
    found = [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    environment = default_environment()
    return [
        r
        for r in found
        if r.marker is None or any(r.marker.evaluate({**environment, "extra": e}) for e in extras)
    ]


def locked_versions() -> dict[str, list[Requirement]]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    locked: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, filter(None, lines)):
        locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return locked


def test_version_is_the_distributions() -> None:
    assert importlib.metadata.version("mokd_det") == mokd_det.__version__
    assert str(Version(mokd_det.__version__)) == mokd_det.__version__


def test_changelog_knows_the_next_or_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", mokd_det.__version__)


@pytest.mark.parametrize("distribution", ["mokd_det", "detectron2"])
def test_requirements_are_installed_in_range(distribution: str) -> None:
    broken = []
    for requirement in requirements_of(distribution):
        version = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            broken.append(f"{requirement} but {version} is installed")
    assert not broken


def test_python_range_covers_this_interpreter() -> None:
    requires = importlib.metadata.metadata("mokd_det")["Requires-Python"]
    running = Version(".".join(map(str, sys.version_info[:3])))
    assert running in Requirement(f"python{requires}").specifier


def test_every_import_of_the_package_is_declared() -> None:
    imported: dict[str, str] = {}
    for path in (ROOT / "mokd_det").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            imported.update({name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names})
    # Kernels that are used where they are: PyTorch's Linux wheels bring Triton, the other is the user's choice.
    kernels = {"triton", "torch_ms_deform_attn"}
    provided = set(sys.stdlib_module_names) | {"mokd_det"} | kernels
    for requirement in requirements_of(
        "mokd_det", ("", "balancers", "evaluation", "export", "slurm", "transformers")
    ):
        distribution = importlib.metadata.distribution(requirement.name)
        # An editable install lists no modules among its files, a modern wheel has no top_level.txt.
        provided.update((distribution.read_text("top_level.txt") or "").split())
        provided.update(path.parts[0].removesuffix(".py") for path in distribution.files or [])
    assert not {f"{module} in {path}" for module, path in imported.items() if module not in provided}


def test_every_package_of_mokd_det_is_installed_with_it() -> None:
    folders = {path.parent for path in (ROOT / "mokd_det").rglob("*.py")}
    assert folders
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert (ROOT / "mokd_det" / "py.typed").is_file()


def test_templates_of_the_report_are_installed_with_it() -> None:
    patterns = re.findall(r'"(report/[^"]+)"', (ROOT / "setup.py").read_text())
    packed = {path for pattern in patterns for path in (ROOT / "mokd_det").glob(pattern)}
    others = {
        path for path in (ROOT / "mokd_det" / "report").rglob("*.*") if path.suffix not in (".py", ".pyc")
    }
    assert packed == others and any(path.name == "style.css" for path in packed)


def test_lock_file_pins_every_declared_requirement_once_per_python() -> None:
    locked = locked_versions()
    for requirement in requirements_of("mokd_det", ("", "balancers", "evaluation", "export", "slurm", "dev")):
        if requirement.name == "detectron2":
            continue
        pins = locked[canonicalize_name(requirement.name)]
        for python in ("3.10", "3.11", "3.12", "3.13"):
            environment = {**default_environment(), "python_version": python}
            applying = [p for p in pins if p.marker is None or p.marker.evaluate(environment)]
            assert len(applying) == 1, f"{requirement.name} on Python {python}: {applying}"
            (pin,) = applying[0].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), (
                f"{requirement} against the lock's {pin.version}"
            )


def test_lock_file_holds_no_addresses() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text
    assert "detectron2" not in locked_versions()


def test_model_zoo_and_lazy_configs_work_without_compiled_operators() -> None:
    # In a process of its own, where the compiled module cannot be imported even if an upstream build has it.
    program = (
        "import sys; sys.modules['detectron2._C'] = None\n"
        "from detectron2 import model_zoo\n"
        "from detectron2.config import LazyConfig, instantiate\n"
        "import detectron2.engine, detectron2.evaluation, detectron2.checkpoint, detectron2.data, mokd_det\n"
        "print(model_zoo.get_config('common/optim.py').AdamW._target_.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "AdamW"


@pytest.mark.parametrize(
    "module", ["cv2", "pkg_resources", "pycocotools.mask", "sklearn.datasets", "tidecv", "torchvision.ops"]
)
@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated")
def test_imports_that_break_first(module: str) -> None:
    assert importlib.import_module(module).__name__ == module


def test_recipe_metadata_needs_no_download(backend: ModuleType, tmp_path: Path) -> None:
    info = tmp_path / backend.prepare_metadata_for_build_wheel(str(tmp_path))
    assert info.name == "detectron2-0.7.2.dist-info"
    found = importlib.metadata.PathDistribution(info)
    assert found.name == "detectron2"
    assert found.version == "0.7.2"
    assert "setuptools<81" in (found.requires or [])


def test_recipe_keeps_python_and_drops_the_rest(
    backend: ModuleType, source_wheel: Path, tmp_path: Path
) -> None:
    built = tmp_path / "out"
    built.mkdir()
    wheel = backend.repackage(source_wheel, built)
    assert wheel.name == "detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    info = "detectron2-0.7.2.dist-info"
    assert set(contents) == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/configs/Base.yaml",
        *(f"{info}/{name}" for name in ("LICENSE", "NOTICE", "METADATA", "WHEEL", "RECORD", "top_level.txt")),
    }
    assert b"Requires-Dist: numpy\n" in contents[f"{info}/METADATA"]
    assert b"Root-Is-Purelib: true" in contents[f"{info}/WHEEL"]
    rows = list(csv.reader(io.StringIO(contents[f"{info}/RECORD"].decode())))
    assert {row[0] for row in rows} == set(contents)
    for name, digest, size in rows[:-1]:
        expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(contents[name])))


def test_recipe_is_reproducible(backend: ModuleType, source_wheel: Path, tmp_path: Path) -> None:
    outputs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        outputs.append(backend.repackage(source_wheel, folder).read_bytes())
    assert outputs[0] == outputs[1]


def test_recipe_refuses_another_file(
    backend: ModuleType, source_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "download_source_wheel", lambda folder: source_wheel)
    built = tmp_path / "out"
    built.mkdir()
    with pytest.raises(backend.BuildError, match=f"expected {backend.SOURCE_SHA256}"):
        backend.build_wheel(str(built))
    assert not list(built.iterdir())


def test_recipe_says_what_to_do_without_a_network(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONSTRAINT", "missing.txt")
    with pytest.raises(backend.BuildError, match="set PIP_FIND_LINKS"):
        backend.download_source_wheel(tmp_path)
