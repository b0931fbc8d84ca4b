#!/bin/sh
# mypy, strict, on an installed tree and the tests: it does not see through the mapping of folders to packages
# in a checkout.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
python=$root/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# From a copy, so that no build/ with files of yesterday is packed.
cp -R pyproject.toml README.md LICENSE src stream models engines "$work"
rm -rf "$work"/src/*.egg-info
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/tree" "$work"
cd "$work/tree"
cp -R "$root/tests" .
# Folders without modules, which mypy would count as packages.
rm -rf mien/stream/*/static tests/fuzz/corpus tests/e2e/node
"$python" -m mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p mien -p tests | tee "$work/said" || true
# A green run over two files is a known trap: the number of files is part of the check.
checked=$(sed -n 's/^Success: no issues found in \([0-9]*\) source files*$/\1/p' "$work/said")
expected=$(find mien tests -name '*.py' | wc -l)
[ -n "$checked" ] || exit 1
if [ "$checked" -lt 30 ] || [ "$checked" -ne "$expected" ]; then
    echo "mypy checked $checked files, but there are $expected" >&2
    exit 1
fi
