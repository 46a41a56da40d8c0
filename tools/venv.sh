# Sourced by the other scripts: prepare_venv EXTRAS makes or reuses a virtual environment and sets PYTHON.
# SHARDSTREAM_VENV names another directory than .venv.

prepare_venv() {
    local extras=$1 root venv stamp wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv=${SHARDSTREAM_VENV:-$root/.venv}
    PYTHON=$venv/bin/python
    if ! [ -x "$PYTHON" ] || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        # Debian ships venv without ensurepip unless python3-venv is installed.
        python3 -c 'import ensurepip' 2>/dev/null || need_package python3-venv
        echo "== venv: $venv"
        python3 -m venv "$venv"
    fi
    # One stamp per set of extras: tools/test and tools/quickstart share an environment without undoing each other.
    stamp=$venv/.shardstream-${extras//,/-}
    wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum)" $root"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "== install: shardstream[$extras]"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check \
            -c "$root/constraints.txt" -e "${root}[$extras]"
        printf '%s' "$wanted" >"$stamp"
    fi
    export PYTHON
}

need_package() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "== apt-get install $*"
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -qq "$@" >/dev/null 2>&1 ||
            { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
    else
        echo "missing: $*. Install with: sudo apt-get install $*" >&2
        exit 1
    fi
}
