#!/bin/sh
# Lints protos/ with buf and checks that the committed stubs are what it generates. Without npm the lint is skipped, and
# says so; with REQUIRE_ALL_TOOLS set it fails instead. PYTHON and BUF_VERSION: as the Makefile has them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
buf=$root/.tools/node_modules/.bin/buf
if [ ! -x "$buf" ] && command -v npm >/dev/null; then
    npm install --silent --no-save --no-package-lock --prefix "$root/.tools" "@bufbuild/buf@$BUF_VERSION" >/dev/null 2>&1 ||
        echo "protos: npm could not install @bufbuild/buf $BUF_VERSION" >&2
fi
if [ -x "$buf" ]; then
    (cd "$here" && "$buf" lint && "$buf" format --diff --exit-code)
elif [ -n "${REQUIRE_ALL_TOOLS:-}" ]; then
    echo "protos: @bufbuild/buf is not here, and REQUIRE_ALL_TOOLS is set" >&2
    exit 1
else
    echo "protos: lint skipped: it needs npm (Debian package npm) to install @bufbuild/buf" >&2
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$here/generate.sh" "$fresh" 2>/dev/null
for file in "$fresh"/guardwire/v1/*; do
    cmp "$file" "$root/clients/python/src/guardwire/v1/$(basename "$file")" || {
        echo "protos: the stubs are not fresh: run make protos" >&2
        exit 1
    }
done
echo "protos: clean and fresh"
