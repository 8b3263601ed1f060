#!/bin/sh
# Writes the lock files: every version with the hashes of all its files, for Python 3.11 and later on any platform, and no
# download address. `make lock` calls it; `make lock UPGRADE=1` moves to the latest versions. Needs uv on the PATH.
set -eu
cd "$(dirname "$0")/.."
lock() { # lock TARGET ARGUMENTS...
    target=requirements/$1.txt
    shift
    uv pip compile "$@" --universal --python-version 3.11 --generate-hashes --excludes requirements/apart.txt \
        --no-emit-index-url --no-emit-find-links --no-annotate --quiet \
        --custom-compile-command "make lock" ${UPGRADE:+--upgrade} --output-file "$target" >/dev/null
    echo "$target: $(grep -c == "$target") packages"
}
lock run pyproject.toml --extra fast --extra gguf --group install --constraints requirements/held.in
lock dev pyproject.toml --extra fast --extra gguf --extra notebook --extra cluster --extra s3 --group install --group dev --constraints requirements/run.txt
lock docs pyproject.toml --extra fast --extra gguf --group install --group docs --constraints requirements/run.txt
