#!/bin/sh
# Writes the hashed locks anew: every platform, no index host in any file, nothing younger than a week (a hijacked
# release is usually found within days) but for the packages named with a date of their own.
#   usage: requirements/lock.sh YYYY-MM-DD     the day before which a release must have been made
set -eu
cd "$(dirname "$0")/.."
lock() {
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        --exclude-newer "$before" --exclude-newer-package fastapi=2026-11-20 --exclude-newer-package openai=2026-11-20 "$@"
}
before="${1:?the day before which a release must have been made, as YYYY-MM-DD}"
lock pyproject.toml requirements/build.in -o requirements/core.txt
lock pyproject.toml requirements/build.in --all-extras -c requirements/core.txt -o requirements/all.txt
lock pyproject.toml requirements/build.in --all-extras --group dev -c requirements/all.txt -o requirements/dev.txt
