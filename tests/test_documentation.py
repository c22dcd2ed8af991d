"""README and docs: links, pictures, files and commands that are there; every tool with an example and a section."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from mokd_det.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "datasets" / "README.md"])
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text("utf-8"))
TOOLS_PAGE = ROOT / "docs" / "tools.md"
PICTURES = ROOT / "docs" / "tools"

LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code blocks and code spans."""
    text = FENCED.sub("", page.read_text("utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", FENCED.sub("", page.read_text("utf-8")), flags=re.MULTILINE):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def make_pictures() -> ModuleType:
    name = "make_pictures"
    specification = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Its dataclass looks its own module up.
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_programs_configs_and_make_targets_of_a_page_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    files = re.findall(r"(?<![\w/.])((?:tools|configs|benchmarks|datasets|docs)/[\w/]+\.(?:py|sh))\b", text)
    missing = {file for file in files if not (ROOT / file).is_file()}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert not missing and not used - targets


@pytest.mark.parametrize("tool", TOOLS)
def test_help_of_a_tool_has_an_example(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    assert ended.value.code == 0
    (name,) = (name for name, module in COMMANDS.items() if f"{module}.py" == tool)
    assert re.search(rf"^ +python -m mokd_det {name} \S", capsys.readouterr().out, flags=re.MULTILINE)


def test_every_tool_has_a_section_with_a_command() -> None:
    text = TOOLS_PAGE.read_text("utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert sorted(sections) == TOOLS
    for tool, section in sections.items():
        assert re.search(rf"^python tools/{tool} ", section, flags=re.MULTILINE), tool
        assert f"[{tool}](#{tool.replace('.', '')})" in text


def test_pictures_are_those_that_one_command_makes(make_pictures: ModuleType) -> None:
    made = sorted(name + picture.suffix for name, picture in make_pictures.PICTURES.items())
    assert sorted(path.name for path in PICTURES.iterdir()) == made
    assert sorted(re.findall(r"\]\(tools/(\S+?)\)", TOOLS_PAGE.read_text("utf-8"))) == made
    for name in made:
        assert (PICTURES / name).stat().st_size <= make_pictures.LIMIT
        with Image.open(PICTURES / name) as image:
            image.load()
            assert min(image.size) >= 400


def test_pictures_need_the_demo(
    make_pictures: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_pictures.main(["--demo", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"error: {tmp_path} has no predictions.png: run `make demo` first, or name its output with --demo\n"
    )


def finished(folder: Path, names: Sequence[str]) -> Path:
    """A folder with files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_picture_of_the_report_needs_a_browser(
    make_pictures: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(make_pictures, "FOLDER", tmp_path / "drawn")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER", raising=False)
    demo = finished(tmp_path / "demo", make_pictures.DEMO_FILES)
    bccd = finished(tmp_path / "bccd", make_pictures.PHOTOGRAPH_FILES)
    assert make_pictures.main(["--demo", str(demo), "--bccd", str(tmp_path)]) == 2
    assert f"error: {tmp_path} has no runs/teacher_r0/student_final.pth" in capsys.readouterr().err
    assert make_pictures.main(["--demo", str(demo), "--bccd", str(bccd)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the picture report needs a browser") and "--without report" in said
    assert not (tmp_path / "drawn").exists()


def test_pictures_of_the_demo_are_made_small(
    make_pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "drawn"
    monkeypatch.setattr(make_pictures, "ROOT", tmp_path)
    monkeypatch.setattr(make_pictures, "FOLDER", folder)
    demo = finished(tmp_path / "demo", make_pictures.DEMO_FILES)
    noise = Image.effect_noise((400, 400), 60).convert("RGB")
    noise.putpixel((0, 0), (255, 0, 0))
    noise.save(demo / "predictions.png")
    Image.new("RGB", (40, 30), "red").save(demo / "curves.png")
    monkeypatch.setattr(make_pictures, "LIMIT", 200_000)
    assert (
        make_pictures.main(["--demo", str(demo), "--only", "quickstart_predictions", "quickstart_curves"])
        == 0
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "quickstart_curves.png",
        "quickstart_predictions.png",
    ]
    with Image.open(folder / "quickstart_curves.png") as image:
        assert image.mode == "RGB" and image.getpixel((5, 5)) == (255, 0, 0)
    with Image.open(folder / "quickstart_predictions.png") as image:
        assert image.mode == "P" and image.size == (400, 400)
