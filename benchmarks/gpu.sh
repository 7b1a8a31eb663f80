#!/usr/bin/env bash
# Everything about the CUDA kernels that needs a GPU, in one call of under ten minutes:
#
#   benchmarks/gpu.sh [FOLDER]      results in FOLDER, or $OUT, or runs/gpu: stages.jsonl, ops.jsonl, pass.jsonl, loop.jsonl, *.log
#   benchmarks/gpu.sh --dry-run     without a GPU: the same stages, the Python parts on the CPU with tiny shapes
#
# Correctness first, then figures. Every stage has a time limit of its own, and one that fails stops no other.
# Needs bash, python3 and nvcc; PYTHON names another interpreter, BUDGET the seconds for all (570). Where no torch that
# sees the GPU is installed, one is fetched with pip into runs/gpu-venv.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=
if [[ ${1:-} == --dry-run ]]; then dry=--dry-run; shift; fi
out=$(realpath -m "${1:-${OUT:-runs/gpu}}")
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
deadline=$((SECONDS + ${BUDGET:-570}))
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
failed=0
: >"$out/stages.jsonl"

stage() { # name, seconds at most, command...
    local name=$1 limit=$2 begun=$SECONDS code
    shift 2
    local left=$((deadline - SECONDS))
    ((limit > left)) && limit=$left
    if ((limit < 5)); then
        code=skipped
    else
        timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
        code=$?
    fi
    echo "{\"stage\": \"$name\", \"exit\": \"$code\", \"seconds\": $((SECONDS - begun))}" | tee -a "$out/stages.jsonl"
    if [[ $code != 0 ]]; then
        failed=1
        tail -n 12 "$out/$name.log" 2>/dev/null
        return 1
    fi
}

unavailable() { echo "{\"stage\": \"$1\", \"exit\": \"not run\", \"why\": \"$2\"}" | tee -a "$out/stages.jsonl"; }

sees_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

find_torch() {
    python3 -m venv --system-site-packages runs/gpu-venv &&
        runs/gpu-venv/bin/pip install -q "$(grep '^torch==' constraints.txt)" -c constraints.txt \
            setuptools ninja numpy filelock pytest hypothesis 'transformers>=5,<6' peft pluggy pydantic safetensors
}

# sm_90a for the Hopper kernel, the card's own number for the others.
compile_selftest() {
    local number
    number=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
    number=${number:-80}
    for source in csrc/cuda/*.cu; do
        local arch=$number name
        name=$(basename "$source" .cu)
        [[ $name == sm90 ]] && arch=90a
        nvcc -std=c++20 -O3 -lineinfo -gencode="arch=compute_$arch,code=sm_$arch" -c -o "$work/$name.o" "$source" &
    done
    local code=0
    for job in $(jobs -p); do wait "$job" || code=1; done
    ((code == 0)) && nvcc -o "$work/selftest" "$work"/*.o
}

sanitize() { # tool; an error that it finds is exit code 9
    compute-sanitizer --tool "$1" --error-exitcode 9 "$work/selftest" --quick
}

export -f compile_selftest find_torch
export work python

if [[ -z $dry ]] && ! sees_gpu; then
    stage torch 240 bash -c find_torch && python=runs/gpu-venv/bin/python
fi
if command -v nvcc >/dev/null; then
    stage compile_selftest 120 bash -c compile_selftest
else
    unavailable compile_selftest "there is no nvcc"
fi
if [[ -n $dry ]]; then
    unavailable selftest "dry run"
else
    stage extension 200 "$python" setup.py build_ext --inplace
    if [[ -x $work/selftest ]]; then
        stage selftest 120 "$work/selftest"
        if command -v compute-sanitizer >/dev/null; then
            export -f sanitize
            for tool in memcheck racecheck initcheck; do stage "$tool" 75 bash -c "sanitize $tool"; done
        else
            unavailable sanitizer "there is no compute-sanitizer"
        fi
    fi
fi
stage tests 120 "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_linear_grad.py
stage ops 130 "$python" benchmarks/gpu_ops.py $dry --out "$out/ops.jsonl" && cat "$out/ops.log"
stage pass 150 "$python" benchmarks/gpu_pass.py $dry --out "$out/pass.jsonl" && cat "$out/pass.log"
for shape in small medium large; do # the engine's step beside a bare loop, in bf16
    flags="--shape $shape --seconds 10 --clips 2 --turns 3"
    [[ -n $dry ]] && flags="--seconds .5 --clips 1 --turns 1 --steps 1"
    device=cuda
    [[ -n $dry ]] && device=cpu
    stage "loop_$shape" 60 "$python" benchmarks/loop.py $flags --device $device --precision bf16 --out "$out/loop.jsonl" &&
        cat "$out/loop_$shape.log"
    [[ -n $dry ]] && break
done
exit $failed
