#!/usr/bin/env bash
# Everything that a fresh GPU machine is good for: bash bench/gpu_session.sh DIR [STAGE ...]
#
# Stages, each within its minutes (in brackets), in this order: kernel-tests [8], gpu-tests [8], kernels [9], attention [9],
# step [9], memory [9], scaling [9], profile [6], render [2]. A stage that fails or runs out of time is noted and the next
# one begins. DIR gets logs/STAGE.log, the records, RESULTS.md with plots, and summary.txt. Given again, measured records
# are not measured again: where one command may only take minutes, give the stages one at a time.
set -uo pipefail
out=$(realpath -m "${1:?usage: bash bench/gpu_session.sh DIR [STAGE ...]}")
shift
cd "$(dirname "$0")/.."
mkdir -p "$out/logs"
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
# Packed rows differ in length, and blocks of a fixed size would leave holes.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
python=${PYTHON:-python}
chosen=" $* "
status=0

stage() { # NAME MINUTES COMMAND...
    local name=$1 minutes=$2 started=$SECONDS code
    shift 2
    [[ $chosen == "  " || $chosen == *" $name "* ]] || return 0
    timeout "${minutes}m" "$@" >"$out/logs/$name.log" 2>&1
    code=$?
    [[ $code == 0 ]] || status=1
    echo "$name: exit $code after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
    [[ $code == 0 ]] || tail -n 5 "$out/logs/$name.log"
}

"$python" -c 'import torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: small shapes on the CPU, GPU tests skipped"
print(torch.__version__, torch.version.cuda, name)' | tee "$out/machine.txt"
# Two processes: the interpreter of the kernels' tests is chosen before triton is imported, and here it is not.
stage kernel-tests 8 "$python" -m pytest -q -m gpu tests/kernels
stage gpu-tests 8 "$python" -m pytest -q -m gpu tests --ignore=tests/kernels
for part in kernels attention step memory scaling; do
    stage "$part" 9 "$python" -m bench.suite "$part" --out "$out/records"
done
stage profile 6 "$python" -m bench.profile_step --out "$out/records"
stage render 2 "$python" -m bench.render "$out/records" --out "$out"
exit $status
