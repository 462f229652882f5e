"""The extension of a fresh clone is the one that another has compiled from the same sources."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """tools/extension.py in a clone whose build takes no time."""
    spec = importlib.util.spec_from_file_location("extension_tool", ROOT / "tools" / "extension.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "ROOT", tmp_path / "clone")
    shutil.copytree(ROOT / "csrc", tmp_path / "clone" / "csrc")
    shutil.copy(ROOT / "setup.py", tmp_path / "clone")
    (tmp_path / "clone" / "sstkern").mkdir()
    module.built = []

    def build() -> Path:
        module.built.append(module.key())
        extension = module.ROOT / "sstkern" / "_cpu.so"
        extension.write_text(f"build {len(module.built)}")
        extension.with_name(module.NOTE).write_text("{}")
        return extension

    monkeypatch.setattr(module, "build", build)
    return module


def test_the_same_sources_are_compiled_once(tool: ModuleType):
    tool.main()
    shutil.rmtree(tool.ROOT / "sstkern")
    (tool.ROOT / "sstkern").mkdir()
    tool.main()
    assert len(tool.built) == 1
    found = {path.name: path.read_text() for path in (tool.ROOT / "sstkern").iterdir()}
    assert found == {"_cpu.so": "build 1", "_build_info.json": "{}"}


@pytest.mark.parametrize("name", ["setup.py", "csrc/team.cpp", "csrc/kernels/cells/lstm.h", "csrc/kernels/cells/new.h"])
def test_other_sources_are_compiled(tool: ModuleType, name: str):
    tool.main()
    with open(tool.ROOT / name, "a") as source:
        source.write("\n")
    tool.main()
    assert len(set(tool.built)) == 2
    assert (tool.ROOT / "sstkern" / "_cpu.so").read_text() == "build 2"


@pytest.mark.parametrize("variable", ["CXXFLAGS", "SSTKERN_SANITIZE"])
def test_other_flags_are_another_build(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str):
    tool.main()
    monkeypatch.setenv(variable, "-Og")
    tool.main()
    assert len(set(tool.built)) == 2


def test_the_latest_builds_are_kept(tool: ModuleType):
    for _ in range(tool.KEPT + 2):
        with open(tool.ROOT / "setup.py", "a") as source:
            source.write("\n")
        tool.main()
    assert len(list(tool.cache().iterdir())) == tool.KEPT
    assert (tool.cache() / tool.key()).is_dir()
