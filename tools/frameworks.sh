# Sourced by tools/test: test_frameworks NAME... runs the tests of these frameworks, each group in an environment
# of its own below .venvs/frameworks. The first line of tests/frameworks/requirements-NAME.txt says in which.

# What continuous integration runs; `transformers`, `jax`, `horovod` and `moving` come by name, or with `all`.
FRAMEWORKS=(lightning accelerate deepspeed tensorflow ray)

test_frameworks() {
    local root name requirements venv python stamp wanted started constraints failed=()
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    [ $# -gt 0 ] || set -- "${FRAMEWORKS[@]}"
    [ "$*" != all ] || set -- "${FRAMEWORKS[@]}" transformers jax horovod moving
    for name in "$@"; do
        requirements=$root/tests/frameworks/requirements-$name.txt
        [ -f "$requirements" ] || { echo "no framework $name: there is no $requirements" >&2; return 2; }
        venv=$root/.venvs/frameworks/$(sed -n '1s/^# venv: //p' "$requirements")
        python=$venv/bin/python
        if ! [ -x "$python" ]; then
            python3 -c 'import ensurepip' 2>/dev/null || need_package python3-venv
            python3 -m venv "$venv"
        fi
        stamp=$venv/.shardstream-$name
        wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$requirements" | sha256sum)" $root"
        started=$SECONDS
        if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
            echo "== install: $name"
            [ "$name" != horovod ] || bash "$root/tools/build-horovod" "$venv" "$root/.venvs/wheels"
            constraints=(-c "$root/constraints.txt")
            # Some libraries need other versions than ours; then all that matter are in the requirements.
            ! grep -q '^# constraints: none' "$requirements" || constraints=()
            "$python" -m pip install --quiet --disable-pip-version-check "${constraints[@]}" \
                -e "$root" -r "$root/tests/frameworks/requirements.txt" -r "$requirements"
            printf '%s' "$wanted" >"$stamp"
            echo "   ($((SECONDS - started)) s)"
        fi
        # DeepSpeed compiles. A build that was killed leaves its lock, for which the next one waits for ever.
        export TORCH_EXTENSIONS_DIR=$venv/torch-extensions
        rm -f "$TORCH_EXTENSIONS_DIR"/*/lock
        echo "== framework: $name"
        # A job of several processes has its own deadline, and may take minutes on a busy machine.
        "$python" -m pytest --frameworks --timeout 900 -o faulthandler_timeout=0 \
            "$root/tests/frameworks/test_$name"*.py || failed+=("$name")
    done
    [ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; return 1; }
}
