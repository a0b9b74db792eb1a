#!/usr/bin/env bash
# Everything this project wants to know of a GPU, in at most 10 minutes and without a network:
#
#     bash bench/gpu_check.sh [--keep] [STEP...]
#
# Without a STEP: versions collect smoke tests micro check memcheck synccheck initcheck racecheck. By name alone, each
# a call of its own: throughput, rivals, losses, profile. docs/gpu.md says what each is for. JSON and logs go to
# bench/results/new/gpu, with --keep to bench/results/gpu, or to $OUT: the results of a step as they come, the running
# step's words in running.log, those of the steps before it in logs.tar. PYTHON names the interpreter (python3).
# The exit status is 1 where a step failed, 2 where there is no GPU.
set -u -o pipefail
cd "$(dirname "$0")/.."
folder=bench/results/new/gpu
if [ "${1:-}" = --keep ]; then
  folder=bench/results/gpu
  shift
fi
out=${OUT:-$folder}
python=${PYTHON:-python3}
known=" versions collect smoke tests micro check memcheck synccheck initcheck racecheck throughput rivals losses profile "
asked=" ${*:-${known% throughput*}} "
for name in $asked; do
  if [[ $known != *" $name "* ]]; then
    echo "gpu_check.sh: STEP must be one of$known, got $name" >&2
    exit 2
  fi
done
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
mkdir -p "$out"
export PYTHONPATH=.:${PYTHONPATH:-} PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 XLA_PYTHON_CLIENT_PREALLOCATE=false
status=0
absent=$("$python" -c 'import torch; print("" if torch.cuda.is_available() else "PyTorch sees no CUDA device")' \
  2> /dev/null) || absent="$python cannot import PyTorch"

stack=tests/kernels/test_residual_stack_cuda.py
files=("$stack" tests/kernels/test_residual_stack_triton.py tests/kernels/test_info_nce_gpu.py tests/kernels/test_policy_ops.py
  tests/kernels/test_stem.py tests/kernels/test_hazard_triton.py tests/kernels/test_quasimetric_gpu.py
  tests/kernels/test_residual_stack_groups.py tests/training/test_cuda_graph.py tests/data/test_replay.py)
checked=()  # of the sanitizers: clusters of 2 and 4, a batch that fills no team and one that ends within one
for case in 7-128-bf16 100-128-fp32 7-256-bf16 100-256-bf16 100-256-fp32; do
  checked+=("$stack::test_gpu_error_is_no_worse[$case]")
done

step() {  # step SECONDS NAME COMMAND...: runs it, keeps its words, goes on whatever comes of it
  local seconds=$1 name=$2
  shift 2
  [[ $asked == *" $name "* ]] || return 0
  echo "== $name"
  timeout -k 5 "$seconds" "$@" > "$out/running.log" 2>&1  # a file: a pipe waits for whoever still holds it
  local code=$?
  tail -n 40 "$out/running.log"
  if [ "$code" -ne 0 ]; then
    status=1
    case $code in
      124 | 137) echo "== $name was ended after $seconds s" ;;
      *) echo "== $name failed, exit status $code" ;;
    esac
  fi
  mv "$out/running.log" "$logs/$name.log"
  tar -cf "$out/logs.tar.part" -C "$logs" . && mv "$out/logs.tar.part" "$out/logs.tar"
}

gpu() {  # the same, of a step that takes a GPU
  [[ $asked == *" $2 "* ]] || return 0
  if [ -n "$absent" ]; then
    echo "== $2: not run, $absent"
    status=2
  else
    step "$@"
  fi
}

sanitizer() {  # sanitizer SECONDS TOOL: no caching, or PyTorch's 2 MB blocks hide what is out of bounds
  [[ $asked == *" $2 "* ]] || return 0
  if [ -z "$absent" ] && ! command -v compute-sanitizer > /dev/null; then
    echo "== $2: not run, compute-sanitizer is not on the PATH"
  else
    gpu "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$2" --error-exitcode 9 \
      "$python" -m pytest "${checked[@]}" -m gpu -q --timeout "$1"
  fi
}

# shellcheck disable=SC2016
step 30 versions bash -c 'nvidia-smi 2> /dev/null; "$1" --version; "$1" -m pip list 2> /dev/null |
  grep -iE "^(torch|triton|cupy|cuda|nvidia-cuda-nvrtc|jax|numpy|pytest)"
  "$1" -c "import deepres, json; print(json.dumps(deepres.backends(), indent=1))"' - "$python"
# shellcheck disable=SC2016
step 40 collect bash -o pipefail -c '"$@" | awk "{ print } /: [0-9]+\$/ { n += \$NF }
  END { print n + 0 \" GPU tests collected\" }"' - "$python" -m pytest --collect-only -qq -m gpu "${files[@]}"
gpu 60 smoke "$python" bench/gpu_smoke.py --out "$out"
gpu 170 tests "$python" -m pytest "${files[@]}" -m gpu -v -n 12 --timeout 60 --timeout-method thread
gpu 45 micro "$python" bench/gpu_micro.py --out "$out"
gpu 130 check "$python" bench/gpu/check.py --out "$out"
sanitizer 40 memcheck
sanitizer 25 synccheck
sanitizer 25 initcheck
sanitizer 25 racecheck
gpu 540 throughput "$python" bench/throughput.py --op residual_stack gradient_step --device cuda --depth 64 1024 \
  --precision bf16 tf32 --seconds 2 --limit 60 --no-plot --out "$out"
gpu 400 rivals "$python" bench/throughput.py --op residual_stack gradient_step --device cuda --depth 64 \
  --precision bf16 --compile --jax --seconds 2 --limit 200 --no-plot --out "$out"
gpu 140 losses "$python" bench/throughput.py --op info_nce --device cuda --precision fp32 --compile --jax --seconds 2 \
  --limit 60 --no-plot --out "$out"
gpu 300 profile ncu --clock-control none --set full --kernel-name 'regex:residual_stack_(forward|dgrad)' \
  --launch-count 4 --force-overwrite --export "$out/profile" \
  "$python" -m pytest "$stack::test_gpu_graph_replays_the_same_bits" -m gpu -q
exit $status
