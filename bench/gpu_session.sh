#!/usr/bin/env bash
# The first half hour on a GPU that is rented bare: bash bench/gpu_session.sh OUT [COMMAND ...] [OPTIONS]
#
#   --only STAGE ...   these stages alone
#   --wheels DIR       what bench/wheels.sh gathered, installed first for this session alone
#   --minutes M        of all stages together, at least 0.5 (default: 9.5 a command)
#   --rehearse         the same stages on a CPU, with small shapes and six times the minutes
#
# A command is what fits ten minutes; without one, all of them are run, one after the other:
#
#   first    probe, kernel-tests, gpu-tests, profile, step as far as the time goes
#   second   probe, step: LLaVA-1.5-7B beside TRL, checkpointing off and on, layers as they are and compiled, the
#            reference cached (from the second epoch on) and each step (the first); then Bunny, then Liger's layers
#   third    probe, attention, kernels: all there is at N = 4096, then other sizes
#   fourth   probe, caps: the steps that mdpo plan promises to fit; memory: the largest micro-batch under a cap
#   fifth    probe, scaling
#
# A stage has its box of seconds (bench/session/stages.py) and is ended in it. Whatever became of it, OUT/STAGE.tgz holds
# its log and its records, anew every half minute while it runs. Where OUT comes back,
#
#   python -m bench.bring_home OUT/*.tgz
#
# unpacks them into bench/results, a folder a device, and renders. What was measured is kept in build/session and not
# measured again by a later command on the same machine and code.
#
# Needs Python 3.10 with PyTorch, transformers and peft; PYTHON names another than python3. Without git it has to be told
# the commit: BENCH_COMMIT, or the file COMMIT that bench/wheels.sh puts beside the wheels.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
wheels=
arguments=()
help() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0; }
fail() { printf 'gpu_session: %s\n' "$*" >&2; exit 2; }
(($#)) || help
while (($#)); do
    case $1 in
        -h | --help) help ;;
        --wheels)
            [[ -n ${2-} && $2 != -* ]] || fail "--wheels needs a folder; bash bench/wheels.sh makes it"
            wheels=$(realpath -m -- "$2")
            shift ;;
        --wheels=*) fail "--wheels and its folder are two words: --wheels ${1#*=}" ;;
        *)
            if [[ ${#arguments[@]} == 0 ]]; then # OUT, as seen from where this was called
                [[ -n $1 ]] || fail "the folder of the archives has no name; give one: bash $0 OUT"
                [[ $1 != -* ]] || fail "the folder of the archives comes first: bash $0 OUT $*"
                arguments+=("$(realpath -m -- "$1")")
            else
                arguments+=("$1")
            fi ;;
    esac
    shift
done
((${#arguments[@]})) || fail "the folder of the archives is missing; give it first: bash $0 OUT"
cd "$root" || exit 2
command -v "$python" >/dev/null || fail "$python is not here; PYTHON=... names another"
[[ -z $wheels || -d $wheels ]] || fail "$wheels is no folder; bash bench/wheels.sh makes it"
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
sent=()
[[ -n $wheels && -e $wheels/COMMIT ]] && sent=(--sent "$wheels/COMMIT")
BENCH_COMMIT=$("$python" -m bench.commit "${sent[@]}") || exit 2
export BENCH_COMMIT
if [[ -n $wheels ]]; then
    site=$root/build/session/site
    rm -rf "$site"
    if "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --target "$site" "$wheels"/*.whl; then
        export PYTHONPATH="$PYTHONPATH:$site"
    else
        echo "the wheels in $wheels cannot be installed here: peers that are missing are skipped by name" >&2
    fi
fi
exec "$python" -m bench.session.runner "${arguments[@]}"
