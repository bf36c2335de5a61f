#!/bin/sh
# Builds the kernels with the address and undefined-behaviour sanitizers and runs their tests on them.
#
#   tests/sanitize.sh [python]     with a Python that has the test dependencies and setuptools (by default a new virtual
#                                  environment gets them); it is not changed
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
cc=${CC:-gcc}

if [ $# -gt 0 ]; then
    python=$1
else
    python3 -m venv "$temp/venv"
    python=$temp/venv/bin/python
    "$python" -m pip install --quiet 'setuptools>=77' "$root[test]"
    "$python" -m pip uninstall --quiet --yes refgpt # it came along; the build below is what is tested
fi

sh "$root/csrc/testing/run_driver.sh" pool
sh "$root/csrc/testing/run_driver.sh" native

# A copy, so that neither the checkout nor an installed build is touched.
cp -r "$root/csrc" "$root/refgpt" "$root/tests" "$root/weights" "$root/benchmarks" "$root/pyproject.toml" "$root/README.md" "$temp"
cd "$temp"
REFGPT_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1" \
    CC=$cc "$python" -c 'import setuptools; setuptools.setup()' build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }

# What Python keeps until it ends is no leak of ours. Pytest leaves file descriptor 2 alone, so that a report is seen.
LD_PRELOAD="$("$cc" -print-file-name=libasan.so) $("$cc" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$temp PYTHONMALLOC=malloc \
    "$python" -m pytest tests/kernels tests/runtime -q -x -p no:cacheprovider --capture=sys --ignore=tests/kernels/test_neon.py
