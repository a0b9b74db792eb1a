#!/usr/bin/env bash
# Everything this project wants to know of a GPU, in at most 10 minutes and without a network:
#
#     bash bench/gpu_check.sh [--keep]
#
# The GPU tests, the small ones under compute-sanitizer where it is installed, the ceilings of the machine, the cost of
# a dependent layer by mechanism with its prediction, and every backend against its rivals. JSON and logs go to
# bench/results/new/gpu, with --keep to bench/results/gpu, or to $OUT; PYTHON names the interpreter (python3).
set -u -o pipefail
cd "$(dirname "$0")/.."
folder=bench/results/new/gpu
[ "${1:-}" = --keep ] && folder=bench/results/gpu
out=${OUT:-$folder}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=.:${PYTHONPATH:-} PYTHONUNBUFFERED=1
failed=0

step() {  # step SECONDS NAME COMMAND...: runs it, keeps its log, goes on whatever comes of it
  local seconds=$1 name=$2
  shift 2
  echo "== $name"
  if timeout "$seconds" "$@" 2>&1 | tee "$out/$name.log" | tail -n 40; then return; fi
  echo "== $name failed"
  failed=1
}

step 150 tests "$python" -m pytest tests -m gpu -q -x
step 170 check "$python" bench/gpu/check.py --out "$out"
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step 60 "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest tests -m gpu -q -k "test_gpu_error_is_no_worse and 7-64 and bf16"
  done
else
  echo "== compute-sanitizer is not installed: not run" | tee "$out/memcheck.log"
fi
step 150 throughput "$python" bench/throughput.py --op residual_stack --device cuda --depth 64 1024 \
  --precision bf16 tf32 --compile --jax --seconds 2 --limit 60 --out "$out"
exit $failed
