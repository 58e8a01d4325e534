#!/usr/bin/env bash
# Gathers what a bare GPU machine lacks for bench/gpu_session.sh: bash bench/wheels.sh DIR [PYTHON_VERSION]
#
# Needs network and pip; run it where git is, since DIR/COMMIT says which code the session will be of. The wheels of
# bench/session/wheels.txt are for Linux on x86-64 and Python 3.12, if no other version is given, some 46 MB in all. Send
# DIR along with the code and say bash bench/gpu_session.sh OUT --wheels DIR there.
set -euo pipefail
fail() { printf 'wheels: %s\n' "$*" >&2; exit 2; }
[[ $# -ge 1 && $# -le 2 && -n $1 && $1 != -* ]] || fail "give a folder: bash bench/wheels.sh DIR [PYTHON_VERSION]"
folder=$(realpath -m -- "$1")
version=${2-3.12}
[[ $version =~ ^3\.[0-9]+$ ]] || fail "$version is no version of Python; give one such as 3.12"
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
python=${PYTHON:-python3}
"$python" -c 'import pip, packaging' 2>/dev/null || fail "$python is not here, or lacks pip or packaging; PYTHON=... names another"
[[ ! -e $folder || -d $folder ]] || fail "$folder is a file; give a folder"
if compgen -G "$folder/*.whl" >/dev/null && [[ ! -e $folder/COMMIT ]]; then
    fail "$folder holds wheels that were not gathered here, and would lose them; give another folder"
fi
mkdir -p "$folder" 2>/dev/null && [[ -w $folder ]] || fail "$folder cannot be written; give another folder"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m bench.commit --write "$folder/COMMIT" >/dev/null || exit 2
rm -f "$folder"/*.whl # two versions of one would stop the installation
platforms=()
for glibc in 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    -d "$folder" -r bench/session/wheels.txt
"$python" -m bench.session.wheels "$folder" --python "$version"
