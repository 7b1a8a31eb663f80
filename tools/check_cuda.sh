#!/usr/bin/env bash
# Compiles every CUDA source with plain nvcc, for each architecture that has a kernel of its own, and fails on an error,
# a warning, a spilled register, or a wgmma that ptxas had to serialise. Needs nvcc and no GPU. `check_cuda.sh -v` also
# prints each kernel's registers.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvcc >/dev/null; then
    echo "check_cuda: skipped, there is no nvcc here"
    exit 0
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

gencode=()
for architecture in 80 90a 100; do gencode+=(-gencode="arch=compute_$architecture,code=sm_$architecture"); done

compile() { # a source, for all architectures: what the host runs is the same, and compiled once
    local name
    name=$(basename "$1" .cu)
    nvcc -std=c++20 -O3 "${gencode[@]}" -Xptxas -v -Xcompiler -Wall,-Wextra -c -o "$out/$name.o" "$1" \
        >"$out/$name.log" 2>&1 || echo "error: nvcc failed" >>"$out/$name.log"
}

for source in csrc/cuda/*.cu; do
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
    compile "$source" &
done
wait
# The program itself links too, with the runtime and nothing else.
nvcc -o "$out/selftest" "$out"/*.o || echo "error: selftest does not link" >"$out/link.log"

failed=0
for log in "$out"/*.log; do
    problems=$(grep -E 'error|warning|Performance Loss|serialized|[1-9][0-9]* bytes spill' "$log" || true)
    if [[ -n $problems ]]; then
        echo "check_cuda: $(basename "$log" .log)"
        echo "$problems" | cut -c1-300
        failed=1
    fi
    if [[ ${1:-} == -v ]]; then
        echo "$(basename "$log" .log): $(grep -oE 'Used [0-9]+ registers' "$log" | sort | uniq -c | tr -s ' \n' ' ')"
    fi
done
if ((failed)); then exit 1; fi
echo "check_cuda: $(ls csrc/cuda/*.cu | wc -l) sources for sm_80, sm_90a and sm_100: no spill, no serialised wgmma"
