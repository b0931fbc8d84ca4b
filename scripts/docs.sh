#!/bin/sh
# The documentation as a site in build/site, strictly: a broken link or an unknown name is an error.
set -eu
cd "$(dirname "$0")/.."
# The packages laid out as they are installed: the reference is read from the source, which no editable install shows.
rm -rf build/api
mkdir -p build/api
cp -R src/mien build/api/mien
cp -R stream models engines build/api/mien
NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet
echo "build/site/index.html"
