"""The C++ engine on aarch64, run under qemu: `make test-aarch64`.

Prepares an arm64 root in the user's cache: Python from Debian's packages, PyTorch's own wheel. No root rights are needed. Compiles the
extension with a cross compiler, as own cells are compiled there, and runs numerical tests and random calls. How fast a machine is shows
nothing of this.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import apart

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "aarch64"
QEMU, PREFIX = "qemu-aarch64-static", "aarch64-linux-gnu-"
PROGRAMS = {"c++": "g++", "g++": "g++", "cc": "gcc", "nm": "nm", "objdump": "objdump", "readelf": "readelf"}
"""Programs that begin with the prefix, by the names that the emulated Python knows. They are this machine's, which need not be emulated."""
CPU = "neoverse-n1"  # Graviton 2 and Ampere Altra: NEON, no SVE, no bfloat16
DEBIAN = ("python3", "libpython3-dev", "libstdc++6")
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# With what they import. As pip sees torch, it needs gigabytes of NVIDIA's libraries, which nothing on a CPU calls.
OF_TORCH = ("torch", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "typing_extensions")
OF_TESTS = ("pytest", "iniconfig", "packaging", "pluggy", "pygments", "hypothesis", "sortedcontainers", "torchrecurrent")
WHEELS = (*OF_TORCH, *OF_TESTS, "numpy", "setuptools", "triton")
TESTS = (
    "engines/test_engines.py",
    "engines/test_capability.py",
    "engines/test_cell_library.py",
    "engines/test_cpu_functions.py",
    "engines/test_sharing_threads.py",
    "engines/test_team.py",
    "program/test_on_cpu.py",
    "test_functional.py",
    "test_lengths.py",
    "test_random_cells.py",
)
OF_SPEED = "tests/engines/test_capability.py::test_the_narrowest_level_has_the_lowest_peak"  # emulated it has 0.6 GFLOP/s, not 1


def run(*command: str | Path, **options) -> str:
    """What it printed. Ends the program where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"aarch64: {shlex.join(map(str, command))} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def check_programs() -> None:
    needed = {QEMU: "qemu-user-static", f"{PREFIX}g++": "g++-aarch64-linux-gnu", "apt-get": "apt", "dpkg-deb": "dpkg"}
    if missing := [package for program, package in needed.items() if not shutil.which(program)]:
        raise SystemExit(f"aarch64: this needs Debian with some packages more: 'apt-get install {' '.join(missing)}'")


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sstkern" / "aarch64"


def prepared(folder: Path) -> Path:
    """The root's Python, as a program that starts here."""
    wheels = [f"{name}=={version(name).partition('+')[0]}" for name in WHEELS]
    note, made = folder / "made", "\n".join([*DEBIAN, *wheels, CPU])
    python = folder / "python" / "bin" / "python"
    if note.exists() and note.read_text() == made:
        return python
    print(f"aarch64: preparing {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    unpack_debian(folder / "debian", folder / "root")
    describe_cpu(folder / "root")
    write_python(folder / "root", python)
    number = run(python, "-c", "import sys; print(*sys.version_info[:2], sep='.')").strip()
    site = folder / "python" / "lib" / f"python{number}" / "site-packages"
    platforms = [word for tag in TAGS for word in ("--platform", tag)]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", site, "--python-version", number, *platforms]
    run(sys.executable, "-m", "pip", "install", *options, *wheels)
    stand_in_for_nvidia(site / "torch" / "lib", folder / "root")
    note.write_text(made)
    return python


def unpack_debian(folder: Path, root: Path) -> None:
    """Debian's packages of this machine's release for arm64, with all that they depend on, into `root`. apt's own state is in `folder`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
        "Dir::Cache": folder / "cache",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
    }
    options = [word for name, value in settings.items() for word in ("--option", f"{name}={value}")]
    run("apt-get", *options, "update")
    run("apt-get", *options, "install", "--download-only", "--yes", "--no-install-recommends", *DEBIAN)
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, root)


def describe_cpu(root: Path) -> None:
    """What Linux says of `CPU`, in files that qemu finds in the root: PyTorch reads it, and ends where it is another architecture's."""
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    model = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n"
    numbers = range(os.cpu_count() or 1)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text("".join(f"processor\t: {number}\nFeatures\t: {features}\n{model}\n" for number in numbers))
    for number in numbers:
        identification = root / "sys" / "devices" / "system" / "cpu" / f"cpu{number}" / "regs" / "identification"
        identification.mkdir(parents=True)
        (identification / "midr_el1").write_text("0x00000000413fd0c1\n")


def write_python(root: Path, python: Path) -> None:
    """A virtual environment whose Python is a script: the system starts it as any program, and what it starts, without binfmt."""
    python.parent.mkdir(parents=True)
    (python.parents[1] / "pyvenv.cfg").write_text(f"home = {root / 'usr' / 'bin'}\ninclude-system-site-packages = false\n")
    command = shlex.join([QEMU, "-cpu", CPU, "-L", str(root), "-0", str(python), str(root / "usr" / "bin" / "python3")])
    python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    python.chmod(0o755)
    for name, of in PROGRAMS.items():
        (python.parent / name).symlink_to(shutil.which(PREFIX + of))


def stand_in_for_nvidia(libraries: Path, root: Path) -> None:
    """PyTorch's wheel for aarch64 is one for GPUs. NVIDIA's libraries are stood in for by some whose functions return cudaErrorNoDevice."""
    present = {path.name for folder in (libraries, *root.glob("**/aarch64-linux-gnu")) for path in folder.glob("*.so*")}
    versions: dict[str, str] = {}  # of the functions of each library that is missing
    defined: set[str] = set()
    undefined: set[str] = set()
    for library in libraries.glob("*.so*"):
        told = run("readelf", "--wide", "--dynamic", "--version-info", library)
        versions |= {name: name for name in re.findall(r"\(NEEDED\).*\[(.+)\]", told) if name not in present | versions.keys()}
        versions |= {name: version for name, version in re.findall(r"File: (\S+) .*\n.*Name: (\S+)", told) if name not in present}
        for line in run("nm", "--dynamic", library).splitlines():
            kind, name = line.split()[-2:]
            (undefined if kind == "U" else defined).add(name.replace("@@", "@"))
    names = [name.partition("@") for name in sorted(undefined - defined)]
    for library, version_of in versions.items():
        functions = [name for name, _, of in names if of == version_of]
        if library.startswith("libcudart."):  # and those that are wanted of any library
            functions += [name for name, at, _ in names if not at and re.match(r"_*(cu|nccl|nvrtc|nvshmem)", name)]
        link_stand_in(libraries / library, version_of, functions)


def link_stand_in(library: Path, version_of: str, functions: list[str]) -> None:
    labels = "".join(f".globl {name}\n.type {name}, %function\n{name}:\n" for name in functions)
    source, versions = library.with_name("stand_in.s"), library.with_name("stand_in.map")
    source.write_text(f".text\n{labels}mov x0, #100\nret\n")
    versions.write_text(f"{version_of} {{ global: *; }};\n")
    linker = [f"-Wl,-soname,{library.name}", f"-Wl,--version-script={versions}"]
    run(f"{PREFIX}gcc", *linker, "-nostdlib", "-shared", "-o", library, source)


def environment(python: Path) -> dict[str, str]:
    """Where programs that the emulated Python starts are cross compilers, and ninja this machine's."""
    path = os.pathsep.join([str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    without = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    return without | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="of random calls")
    options, of_pytest = parser.parse_known_args()
    check_programs()
    python = prepared(cache())
    print("aarch64: compiling the extension", flush=True)
    environ = environment(python)
    environ |= {"PYTHONPATH": str(apart.build(FOLDER, environ, python)), "SSTKERN_CACHE": str(FOLDER / "cells")}
    tests = [f"{ROOT}/tests/{name}" for name in TESTS]
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "--deselect", OF_SPEED, *tests, *of_pytest]
    red = subprocess.run(command, cwd=FOLDER, env=environ).returncode
    fuzz = [python, f"{ROOT}/tests/fuzz.py", "--seconds", str(options.seconds)]
    return red or subprocess.run(fuzz, cwd=FOLDER, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
