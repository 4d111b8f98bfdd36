"""Build of the one extension module, fedcli.core._core; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

# Python's own flags ask for debug information, which takes the compiler a fifth of its time.
RELEASE_FLAGS, DEBUG_FLAGS = "-O3 -g0 -DNDEBUG", "-O1 -g -UNDEBUG"
# Contraction into FMA stays allowed, hence gnu11; NaN checks must work, hence no -ffast-math.
C_FLAGS = "-std=gnu11 -fno-math-errno -fno-trapping-math -fvisibility=hidden -Wno-psabi"
# Cython's code only checks arguments and calls the core. Without optimisation a round takes some 15
# microseconds longer; -O1 takes the compiler a second longer than -Og and gains nothing more.
GLUE_FLAGS = "-Og -Wno-sign-compare"
# To try in turn for the kernels, which are written in vectors and unrolled by hand, so that -O3 has
# nothing to add but a sixth of the compiler's time. The second is for compilers that refuse the
# name of GCC's cost model.
KERNEL_FLAGS = ["-O2 -ftree-vectorize -fvect-cost-model=dynamic", ""]
# Per folder. Synthetic data, payloads and quantised values must not depend on what the compiler
# makes of a * b + c.
FOLDER_FLAGS = {folder: ["-ffp-contract=off"] for folder in ("random", "compress", "secure")}
# Per instruction set, flags to try in turn: GCC < 11 and Clang < 12 lack the levels' names.
ISA_FLAGS = {
    "avx2": ["-march=x86-64-v3", "-mavx2 -mfma -mbmi -mbmi2 -mf16c"],
    "avx512": [
        "-march=x86-64-v4 -mprefer-vector-width=512",
        "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    ],
}
# What takes longest to compile comes first, so that no processor waits for it at the end.
LONGEST_FIRST = ["avx512", "avx2", "generic"]

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


NO_COMPILER = """fedcli: its core is C, and '{}' cannot compile a C program with Python's headers. \
Install a C compiler and the headers, then try again. Debian, Ubuntu: apt install gcc libc6-dev \
python3-dev. Fedora: dnf install gcc python3-devel. macOS: xcode-select --install. A compiler of \
another name is used when the environment variable CC holds its name."""


def say(text: str) -> None:
    """Prints what the build does; pip shows it with --verbose."""
    print(f"fedcli: {text}", file=sys.stderr, flush=True)


def wanted_isas() -> list[str]:
    """Returns the instruction sets to build beside the generic one: FEDCLI_BUILD_ISAS, or all."""
    wanted = os.environ.get("FEDCLI_BUILD_ISAS", ",".join(ISA_FLAGS)).split(",")
    return [name for name in ISA_FLAGS if name in wanted]


class Build(build):
    """Compiles first: without a compiler the files of the package need not be copied."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


class BuildCore(build_ext):
    """Compiles csrc/ file by file, each with its own flags, and links it into the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the core, always anew: files do not tell with what settings they were made."""
        includes = [f"-I{folder}" for folder in self.compiler.include_dirs]
        if not self.try_program(PYTHON_PROGRAM, includes):
            raise SystemExit(NO_COMPILER.format(self.compiler.compiler[0]))
        debug = os.environ.get("FEDCLI_DEBUG") == "1"
        compile_openmp, link_openmp = self.probe_openmp()
        probed = {name: self.probe(X86_64_PROGRAM, ISA_FLAGS[name]) for name in wanted_isas()}
        isas = {name: flags for name, flags in probed.items() if flags is not None}
        have = [f"-DFED_HAVE_{name.upper()}" for name in isas]
        level = DEBUG_FLAGS if debug else RELEASE_FLAGS
        flags = [*C_FLAGS.split(), *level.split(), *compile_openmp, *have]
        kernel_flags = None if debug else self.probe(ANY_PROGRAM, KERNEL_FLAGS)
        folders = {**FOLDER_FLAGS, "kernels": kernel_flags or []}

        absent = {*ISA_FLAGS} - {*isas}
        paths = sorted(path for path in Path("csrc").rglob("*.c") if path.stem not in absent)
        ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
        paths.sort(key=lambda path: ranks.get(path.stem, len(ranks)))
        say(f"compiling {len(paths)} C files for {', '.join(['generic', *isas])}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [
                pool.submit(
                    self.compile_file,
                    path,
                    [*flags, *folders.get(path.parent.name, []), *isas.get(path.stem, [])],
                )
                for path in paths
            ]
            say("translating the Cython module to C at the same time")
            glue = self.translate(ext, debug)
            glue_flags = [] if debug else GLUE_FLAGS.split()
            objects.append(pool.submit(self.compile_file, glue, [*flags, *glue_flags]))
            ext.extra_objects = [made.result() for made in objects]
        say("linking")
        ext.sources, ext.extra_link_args = [], link_openmp
        self.force = True
        super().build_extension(ext)

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
        """Returns the first flags with which this compiler builds a program, None if none do."""
        each = map(str.split, choices)
        return next((flags for flags in each if self.try_program(program, flags)), None)

    def probe_openmp(self) -> tuple[list[str], list[str]]:
        """Returns compile and link flags with which an OpenMP program runs, empty if none do."""
        if os.environ.get("FEDCLI_NO_OPENMP") == "1":
            return [], []
        for prefix in ("", "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
            compile_flags, link_flags = ["-fopenmp"], ["-fopenmp"]
            if prefix:  # Apple's clang with Homebrew's libomp
                compile_flags = ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"]
                link_flags = [f"-L{prefix}/lib", "-lomp"]
            if self.try_program(OPENMP_PROGRAM, [*compile_flags, *link_flags], run=True):
                return compile_flags, link_flags
        say("no working OpenMP found, building without threads")
        return [], []

    def try_program(self, program: str, flags: list[str], run: bool = False) -> bool:
        """Tells whether a program compiles and links with `flags` and, if asked, runs."""
        with tempfile.TemporaryDirectory() as tmp:
            source, binary = Path(tmp, "probe.c"), Path(tmp, "probe")
            source.write_text(program)
            build = [*self.compiler.compiler, str(source), *flags, "-o", str(binary)]
            commands = [build, [str(binary)]] if run else [build]
            try:
                return all(subprocess.run(c, capture_output=True).returncode == 0 for c in commands)
            except OSError:  # no such compiler
                return False


if __name__ == "__main__":
    sources = sorted(str(path) for path in Path("csrc").rglob("[!.]*.*"))
    parts = ["setup.py", "fedcli/core/_fed.pxd", *sources]
    core = Extension(
        "fedcli.core._core", ["fedcli/core/_core.pyx"], depends=parts, include_dirs=["csrc"]
    )
    setup(ext_modules=[core], cmdclass={"build": Build, "build_ext": BuildCore})
