#!/bin/sh
# Compiles the kernels and rows_driver.c with the flags of build.py, and compares the rows with their scalar rows.
#
#   run_driver.sh native [isa]        this machine's instruction sets, under address and undefined-behaviour sanitizers
#   run_driver.sh neon                cross-compiled for aarch64, under qemu (gcc-aarch64-linux-gnu, qemu-user)
#   run_driver.sh pool                the pool of threads by itself, under the thread sanitizer and then with forks
set -eu
csrc=$(cd "$(dirname "$0")/.." && pwd)
out=$(mktemp -d)
define= # flags for every file
trap 'rm -rf "$out"' EXIT
flags=$(sed -n 's/^FLAGS = \[\(.*\)\]$/\1/p' "$csrc/build.py" | tr -d '",')
test -n "$flags"

build() { # compiler, object name, its own flags and file
    compiler=$1 object=$2
    shift 2
    "$compiler" $flags -Werror -I"$csrc" "$@" -c -o "$out/$object.o"
}

case ${1:-} in
native)
    cc=${CC:-cc} sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O2"
    build "$cc" scalar $sanitize "$csrc/scalar.c"
    case $(uname -m) in
    x86_64)
        build "$cc" avx2 -mavx2 -mfma -mf16c $sanitize "$csrc/avx2.c"
        # A processor that has these instructions only as part of AVX-512 runs them in that encoding.
        if grep -qw avx_vnni /proc/cpuinfo 2>/dev/null; then vnni=-mavxvnni define=
        else vnni="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni" define=-DREFGPT_EVEX_AVXVNNI; fi
        build "$cc" avxvnni -mavx2 -mfma -mf16c $vnni $sanitize "$csrc/avxvnni.c"
        avx512="-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl"
        build "$cc" avx512 $avx512 $sanitize "$csrc/avx512.c"
        build "$cc" avx512vnni $avx512 -mavx512vnni $sanitize "$csrc/avx512vnni.c"
        build "$cc" avx512bf16 $avx512 -mavx512vnni -mavx512bf16 $sanitize "$csrc/avx512bf16.c"
        ;;
    aarch64 | arm64)
        build "$cc" neon $sanitize "$csrc/neon.c"
        build "$cc" neondot -march=armv8.2-a+dotprod $sanitize "$csrc/neondot.c"
        ;;
    esac
    runner=
    ;;
pool)
    for how in thread address,undefined; do
        "${CC:-cc}" $flags -Werror -g -O1 -fsanitize=$how "$csrc/testing/pool_driver.c" "$csrc/parallel.c" \
            "$csrc/float_state.c" -pthread -lm -o "$out/pool"
        "$out/pool" $([ $how = thread ] || echo fork)
    done
    exit
    ;;
neon)
    cc=aarch64-linux-gnu-gcc sanitize=
    build "$cc" scalar "$csrc/scalar.c"
    build "$cc" neon "$csrc/neon.c"
    build "$cc" neondot -march=armv8.2-a+dotprod "$csrc/neondot.c"
    runner="qemu-aarch64 -L /usr/aarch64-linux-gnu"
    set -- neon neon neondot
    ;;
*)
    echo "usage: $0 native [isa]|neon|pool" >&2
    exit 2
    ;;
esac
shift
for file in dispatch cpu float_state indices parallel testing/rows_driver; do
    build "$cc" "$(basename $file)" $define $sanitize "$csrc/$file.c"
done
"$cc" $sanitize "$out"/*.o -lm -o "$out/driver"
[ $# -gt 0 ] || set -- ""
for isa; do $runner "$out/driver" ${isa:+"$isa"}; done
