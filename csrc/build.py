"""Builds the extension ``_refgpt_kernels``: the cffi wrapper around the C files, with every instruction set the
architecture has, each compiled with its own flags. A baseline build: what runs is chosen on the user's machine."""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("csrc")
# No contraction but the written one, and nothing that changes what a float is: the bits are a promise.
FLAGS = ["-std=gnu11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
#: Flags of the environment, or of the Python that builds, that would change the bits of results, or which processors
#: run them. They are taken out rather than overruled: at the link, -ffast-math alone makes the whole process flush
#: subnormals to 0.
UNWANTED = re.compile(
    r"""-Ofast | --optimi[sz]e=fast | -f(no-)?(fast|unsafe|associative|reciprocal|finite|trapping|rounding)-math\S*
        | -funsafe-math-optimizations | -ffinite-math-only | -fno-signed-zeros | -fno-honor-(nans|infinities)
        | -fapprox-func | -fsingle-precision-constant | -fcx-\S+
        | -f(fp-model|fp-contract|fp-eval-method|excess-precision|denormal-fp-math)\S*
        | -m(arch|cpu|fpmath|fpu)=\S+ | -m(daz-ftz|pc32|pc64|pc80) | -m(recip|fma|avx|f16c|sse4|ssse3)\S*""",
    re.VERBOSE,
)
X86_ISAS = {"avx2": ["-mavx2", "-mfma", "-mf16c"]}
X86_ISAS["avxvnni"] = [*X86_ISAS["avx2"], "-mavxvnni"]
X86_ISAS["avx512"] = [*X86_ISAS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
X86_ISAS["avx512vnni"] = [*X86_ISAS["avx512"], "-mavx512vnni"]
X86_ISAS["avx512bf16"] = [*X86_ISAS["avx512vnni"], "-mavx512bf16"]
EVEX_AVXVNNI = [*X86_ISAS["avx512vnni"], "-DREFGPT_EVEX_AVXVNNI"]
#: The first tools that know an instruction set, and a function that uses it. Builds by older tools leave it out. The
#: flag alone does not tell: a compiler may know it while its assembler does not know the instruction.
RECENT = {"avxvnni": "GCC 11 with binutils 2.36, and Clang 12,"}
PROBES = {
    "avxvnni": "#include <immintrin.h>\n"
    "__m256i probe(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }\n"
}
ARM_ISAS = {"neon": [], "neondot": ["-march=armv8.2-a+dotprod"]}
ISAS: dict[str, dict[str, list[str]]] = {"x86_64": X86_ISAS, "aarch64": ARM_ISAS, "arm64": ARM_ISAS}


def target() -> tuple[str, list[str]]:
    """The architecture to compile for, and the flags that ask for it. A universal Python on macOS would compile every
    file for two architectures with the flags of one: only this machine's is wanted."""
    machine = sysconfig.get_platform().rpartition("-")[2]
    if machine != "universal2":
        return machine, []
    return platform.machine(), ["-arch", platform.machine()]


def isa_flags() -> dict[str, list[str]]:
    """The instruction sets of the target architecture, with their compiler flags."""
    found = {"scalar": [], **ISAS.get(target()[0], {})}
    return found | {"avxvnni": EVEX_AVXVNNI} if "avxvnni" in found and os.environ.get("REFGPT_EVEX_AVXVNNI") else found


def chosen_isas() -> list[str]:
    """Those to compile: all, or scalar and the ones that ``REFGPT_BUILD_ISAS`` names."""
    known, named = list(isa_flags()), os.environ.get("REFGPT_BUILD_ISAS", "").replace(",", " ").split()
    if unknown := sorted(set(named) - set(known)):
        raise ValueError(f"REFGPT_BUILD_ISAS names {' '.join(unknown)}: this architecture has {' '.join(known)}")
    return [isa for isa in known if not named or isa in named or isa == "scalar"]


def without_unwanted(words: list[str]) -> tuple[list[str], list[str]]:
    """A command's words without the ``UNWANTED`` flags, and those flags."""
    dropped = [word for word in words if UNWANTED.fullmatch(word)]
    return [word for word in words if word not in dropped], dropped


def made_from(words: list[str]) -> str:
    """A digest of a compiler's words and of every file that it may read: headers are included across rooms."""
    files = sorted(path for path in CSRC.rglob("*") if path.suffix in (".c", ".h", ".def"))
    told = [" ".join(words).encode(), *(part for path in files for part in (str(path).encode(), path.read_bytes()))]
    return sha256(b"\0".join(told)).hexdigest()


def declarations() -> str:
    """The header without its include guard: of the preprocessor's lines cffi reads plain constants only."""
    lines = (CSRC / "refgpt_kernels.h").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if re.match(r"#define REFGPT_\w+ +\d+", line) or not line.startswith("#"))


class BuildKernels(build_ext):
    """Compile the wrapper and one object an instruction set, then link them into one module.

    ``REFGPT_BUILD_ISAS`` limits the build to scalar and the instruction sets that it names: quick while you change
    kernels. ``REFGPT_CFLAGS`` is added to the flags of every file and of the link (sanitizers). CFLAGS, CPPFLAGS,
    LDFLAGS and CC count as they do for every extension, but for the flags that would change the bits of results
    (``UNWANTED``). ``REFGPT_EVEX_AVXVNNI=1`` compiles the instructions of AVX-VNNI in the encoding of AVX-512, for
    tests on processors that only have AVX-512 VNNI.
    """

    def drop_unwanted_flags(self) -> None:
        """Take them out of the compiler's commands, into which setuptools has put what the environment says."""
        dropped: dict[str, None] = {}
        for name in self.compiler.executables:
            words = getattr(self.compiler, name, None)
            if isinstance(words, list):
                kept, unwanted = without_unwanted(words)
                setattr(self.compiler, name, kept)
                dropped |= dict.fromkeys(unwanted)
        for flag in dropped:
            given = [name for name, value in sorted(os.environ.items()) if flag in value.split()]
            where = ", ".join(given) or "Python's own build flags"
            self.warn(f"left out {flag} (in {where}): it would change the results, or the processors that can run them")

    def can_compile(self, isa: str) -> bool:
        """Whether compiler and assembler know an instruction set. A warning names one that is left out."""
        if isa not in RECENT or isa_flags()[isa] is EVEX_AVXVNNI:
            return True
        probe = Path(self.build_temp, "probe.c")
        probe.write_text(PROBES[isa], encoding="ascii")
        try:
            self.compiler.compile([str(probe)], output_dir=self.build_temp, extra_postargs=[*FLAGS, *isa_flags()[isa]])
        except CompileError:
            self.warn(f"left out {isa}: this compiler or its assembler does not know it; {RECENT[isa]} do")
            return False
        return True

    def build_extension(self, ext: Extension) -> None:
        self.drop_unwanted_flags()
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        ffi = FFI()
        ffi.cdef(declarations())
        ffi.set_source(ext.name, '#include "refgpt_kernels.h"')
        wrapper = temp / f"{ext.name}.c"
        ffi.emit_c_code(str(wrapper))

        extra = [*target()[1], *without_unwanted(os.environ.get("REFGPT_CFLAGS", "").split())[0]]
        ext.include_dirs.append(str(CSRC))
        ext.sources = [*ext.sources, str(wrapper)]
        ext.extra_compile_args = [*FLAGS, *extra]
        ext.extra_link_args = ["-O3", "-fno-fast-math", *extra, "-pthread"]  # the last of their kind, here too
        isas = [isa for isa in chosen_isas() if self.can_compile(isa)]
        if isa_flags().get("avxvnni") is EVEX_AVXVNNI:
            ext.define_macros.append(("REFGPT_EVEX_AVXVNNI", None))
        ext.define_macros += [(f"REFGPT_WITHOUT_{isa}", None) for isa in isa_flags() if isa not in isas]

        def compiled(isa: str) -> list[str]:
            """The object of an instruction set. One that was made from the same files and flags before is kept."""
            source, flags = str(CSRC / f"{isa}.c"), [*FLAGS, *extra, *isa_flags()[isa]]
            (made,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            key, mark = made_from([*self.compiler.compiler_so, *flags]), Path(f"{made}.key")
            if not (Path(made).exists() and mark.exists() and mark.read_text(encoding="ascii") == key):
                mark.unlink(missing_ok=True)
                self.compiler.compile(
                    [source], output_dir=self.build_temp, include_dirs=ext.include_dirs, extra_postargs=flags
                )
                mark.write_text(key, encoding="ascii")
            return [made]

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each takes a compiler's process a minute or so
            ext.extra_objects += [file for files in pool.map(compiled, isas) for file in files]
        self.force = True  # headers are included across rooms: a stale object must not survive
        super().build_extension(ext)
