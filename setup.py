"""Build of the one extension module, fedcli.core._core; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

# Python's own flags ask for debug information, which takes the compiler a fifth of its time.
RELEASE_FLAGS, DEBUG_FLAGS = "-g0 -DNDEBUG", "-O1 -g -UNDEBUG"
# Choices, tried in turn. The passes of -O2 and -O3 that are switched off gain nothing here, because
# the kernels are written in vectors and unrolled by hand; they would take half of the compiler's
# time. The second choice is for compilers that do not know these options of GCC.
OPTIMIZE_FLAGS = [
    "-O2 -ftree-vectorize -fvect-cost-model=dynamic"
    " -fno-code-hoisting -fno-cprop-registers -fno-crossjumping -fno-forward-propagate -fno-ipa-cp"
    " -fno-ipa-modref -fno-ipa-ra -fno-peephole2 -fno-rerun-cse-after-loop -fno-schedule-insns2"
    " -fno-store-merging -fno-thread-jumps -fno-tree-bit-ccp -fno-tree-dominator-opts -fno-tree-pre"
    " -fno-tree-tail-merge -fno-tree-vrp",
    "-O3",
]
# Contraction into FMA stays allowed, hence gnu11; NaN checks must work, hence no -ffast-math.
C_FLAGS = "-std=gnu11 -fno-math-errno -fno-trapping-math -fvisibility=hidden -Wno-psabi"
# Cython's code only checks arguments and calls the core. Without optimisation a round takes some 15
# microseconds longer. With -O1 the compiler takes a second longer than with -Og, and the code is
# not faster.
GLUE_FLAGS = "-Og -Wno-sign-compare"
# Further flags by folder. Synthetic data, payloads and quantised values must not depend on whether
# the compiler contracts a * b + c into one instruction.
FOLDER_FLAGS = {folder: ["-ffp-contract=off"] for folder in ("random", "compress", "secure")}
# Folders whose files are compiled as one file, which saves a fifth of the time. So the static
# names of a folder must differ. Files with a version per instruction set are compiled separately.
UNITED = {"csrc", "aggregate", "client", "cohort", "compress", "net", "random", "step"}
# Per instruction set, flags to try in turn: GCC < 11 and Clang < 12 do not know x86-64-v3 and -v4.
ISA_FLAGS = {
    "avx2": ["-march=x86-64-v3", "-mavx2 -mfma -mbmi -mbmi2 -mf16c"],
    "avx512": [
        "-march=x86-64-v4 -mprefer-vector-width=512",
        "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    ],
}
ANY_PROGRAM = "int main(void) { return 0; }\n"
PYTHON_PROGRAM = "#include <Python.h>\nint main(void) { return 0; }\n"
X86_64_PROGRAM = "#ifndef __x86_64__\n#error\n#endif\nint main(void) { return 0; }\n"

OPENMP_PROGRAM = """#include <omp.h>
int main(void) {
    int total = 0;
#pragma omp parallel reduction(+ : total)
    total += omp_get_num_threads();
    return total < 1;
}
"""


NO_COMPILER = """fedcli: the core is C, but '{}' cannot compile a C program with Python's headers. \
Install a C compiler and the headers, then try again. Debian, Ubuntu: apt install gcc libc6-dev \
python3-dev. Fedora: dnf install gcc python3-devel. macOS: xcode-select --install. To use a \
compiler of another name, set the environment variable CC."""


def say(text: str) -> None:
    """Prints what the build does; pip shows it with --verbose."""
    print(f"fedcli: {text}", file=sys.stderr, flush=True)


def wanted_isas() -> list[str]:
    """Returns the instruction sets to build beside the generic one: FEDCLI_BUILD_ISAS, or all."""
    wanted = os.environ.get("FEDCLI_BUILD_ISAS", ",".join(ISA_FLAGS)).split(",")
    return [name for name in ISA_FLAGS if name in wanted]


def core_files(isas: Collection[str], folder: Path) -> list[Path]:
    """Returns the files that are compiled for these instruction sets.

    A file that includes all files of a folder of csrc/ is written to `folder`. The files that take
    longest come first, so that no processor waits for one of them at the end.
    """
    kernels = ["generic", *ISA_FLAGS]
    absent = {*ISA_FLAGS} - {*isas}
    united: dict[str, list[Path]] = {}
    sizes: dict[Path, int] = {}  # bytes of the source that each file compiles
    for path in sorted(Path("csrc").rglob("*.c")):
        if path.parent.name in UNITED and path.stem not in kernels:
            united.setdefault(path.parent.name, []).append(path)
        elif path.stem not in absent:
            sizes[path] = path.stat().st_size
    for name, paths in united.items():
        all_of_folder = folder / name / "all.c"
        all_of_folder.parent.mkdir(parents=True, exist_ok=True)
        all_of_folder.write_text("".join(f'#include "{p.relative_to("csrc")}"\n' for p in paths))
        sizes[all_of_folder] = sum(path.stat().st_size for path in paths)

    def weight(path: Path) -> tuple[int, int, Path]:
        rank = kernels.index(path.stem) if path.stem in kernels else -1
        return rank, sizes[path], path

    return sorted(sizes, key=weight, reverse=True)


class Build(build):
    """Compiles before it copies the package's files, so that a missing compiler shows at once."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


@dataclass(frozen=True)
class Settings:
    """The flags for this compiler."""

    common: list[str]  # for all files
    optimize: list[str]
    isas: dict[str, list[str]]  # the instruction sets that are built beside the generic one
    link: list[str]

    def flags_of(self, path: Path) -> list[str]:
        """Returns the flags for a file of csrc/."""
        of_folder = FOLDER_FLAGS.get(path.parent.name, [])
        return [*self.common, *self.optimize, *of_folder, *self.isas.get(path.stem, [])]


class BuildCore(build_ext):
    """Compiles csrc/ file by file, each with its own flags, and links it into the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the core, always anew: object files do not record their flags."""
        debug = os.environ.get("FEDCLI_DEBUG") == "1"
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            probing = pool.submit(self.find_settings, debug)
            glue = pool.submit(self.compile_glue, ext, debug, probing)
            settings = probing.result()
            paths = core_files(settings.isas, Path(self.build_temp, "united"))
            say(f"compiling {len(paths)} C files for {', '.join(['generic', *settings.isas])}")
            each = [pool.submit(self.compile_file, p, settings.flags_of(p)) for p in paths]
            ext.extra_objects = [made.result() for made in [*each, glue]]
        say("linking")
        ext.sources, ext.extra_link_args = [], settings.link
        self.force = True
        super().build_extension(ext)

    def find_settings(self, debug: bool) -> Settings:
        """Finds the flags that this compiler accepts."""
        includes = [f"-I{folder}" for folder in self.compiler.include_dirs]
        if not self.compiles(PYTHON_PROGRAM, includes):
            raise SystemExit(NO_COMPILER.format(self.compiler.compiler[0]))
        compile_openmp, link_openmp = self.probe_openmp()
        probed = {name: self.probe(X86_64_PROGRAM, ISA_FLAGS[name]) for name in wanted_isas()}
        isas = {name: flags for name, flags in probed.items() if flags is not None}
        have = [f"-DFED_HAVE_{name.upper()}" for name in isas]
        level = DEBUG_FLAGS if debug else RELEASE_FLAGS
        common = [*C_FLAGS.split(), *level.split(), *compile_openmp, *have]
        optimize = None if debug else self.probe(ANY_PROGRAM, OPTIMIZE_FLAGS)
        return Settings(common, optimize or [], isas, link_openmp)

    def compile_glue(self, ext: Extension, debug: bool, probing: Future[Settings]) -> str:
        """Compiles the Cython module; returns its object file."""
        say("translating the Cython module to C")
        path = self.translate(ext, debug)
        flags = [] if debug else GLUE_FLAGS.split()
        return self.compile_file(path, [*probing.result().common, *flags])

    def translate(self, ext: Extension, debug: bool) -> Path:
        """Translates the Cython module; returns its C file."""
        from Cython.Build import cythonize

        made = cythonize(
            [Extension(ext.name, ext.sources)],
            build_dir=self.build_temp,
            compiler_directives={
                "language_level": 3,
                "boundscheck": debug,
                "wraparound": False,
                "auto_pickle": False,
            },
            force=True,
            quiet=True,
        )
        return Path(made[0].sources[0])

    def compile_file(self, path: Path, flags: list[str]) -> str:
        """Compiles one C file with its flags; returns its object file."""
        flags = ["-Icsrc", *flags]
        return self.compiler.compile([str(path)], self.build_temp, extra_postargs=flags)[0]

    def probe(self, program: str, choices: list[str]) -> list[str] | None:
        """Returns the first flags with which the compiler accepts a program, or None."""
        each = map(str.split, choices)
        return next((flags for flags in each if self.compiles(program, flags)), None)

    def probe_openmp(self) -> tuple[list[str], list[str]]:
        """Returns compile and link flags for OpenMP; empty if no OpenMP program runs."""
        if os.environ.get("FEDCLI_NO_OPENMP") == "1":
            return [], []
        for prefix in ("", "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
            compile_flags, link_flags = ["-fopenmp"], ["-fopenmp"]
            if prefix:  # Apple's clang with Homebrew's libomp
                compile_flags = ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"]
                link_flags = [f"-L{prefix}/lib", "-lomp"]
            if self.runs(OPENMP_PROGRAM, [*compile_flags, *link_flags]):
                return compile_flags, link_flags
        say("no working OpenMP found, building without threads")
        return [], []

    def compiles(self, program: str, flags: Sequence[str]) -> bool:
        """Tells whether the compiler accepts a program and the flags; nothing is written."""
        return self.succeeds(
            [*self.compiler.compiler, "-fsyntax-only", *flags, "-xc", "-"], program
        )

    def runs(self, program: str, flags: Sequence[str]) -> bool:
        """Tells whether a program compiles, links and runs."""
        with tempfile.TemporaryDirectory() as tmp:
            binary = str(Path(tmp, "probe"))
            build = [*self.compiler.compiler, "-xc", "-", *flags, "-o", binary]
            return self.succeeds(build, program) and self.succeeds([binary])

    def succeeds(self, command: list[str], given: str = "") -> bool:
        """Tells whether a command that reads `given` exits with 0."""
        try:
            done = subprocess.run(command, input=given, capture_output=True, text=True)
        except OSError:  # no such compiler
            return False
        return done.returncode == 0


if __name__ == "__main__":
    sources = sorted(str(path) for path in Path("csrc").rglob("[!.]*.*"))
    parts = ["setup.py", "fedcli/core/_fed.pxd", *sources]
    core = Extension(
        "fedcli.core._core", ["fedcli/core/_core.pyx"], depends=parts, include_dirs=["csrc"]
    )
    setup(ext_modules=[core], cmdclass={"build": Build, "build_ext": BuildCore})
