#!/usr/bin/env bash
# Everything that needs a GPU, in one command, on a machine without a network.
#
#   benchmarks/gpu.sh [STEP ...]            default: build test sanitize bench precision profile
#
#   build     compile for this card and install (editable); register and spill report in build.log
#   test      the whole test suite, the tests marked gpu included
#   sanitize  compute-sanitizer: all tools on the tiny benchmarks, memcheck and racecheck on the gpu tests too
#   bench     every case of `python -m benchmarks` at its GPU shape
#   precision hyper-cleaning in fp32, 3xtf32 and tf32: time and errors of each
#   profile   ncu on our kernels of five cases
#   train     the long training runs; DATA=DIR holds omniglot/ and mnist/, else the embedded data are used
#
# Small result files go to ${OUT:-benchmarks/results}. One step that fails does not stop the others (but build does);
# the exit status is 1 if any failed. Needs CUDA torch, nvcc, scikit-build-core, cmake, ninja, pybind11, pytest,
# hypothesis, rich; compute-sanitizer and ncu for their steps. May be set: PYTHON; TESTS, the test files; RUNS and
# MINUTES (each few-shot run, 6) of train; PYBILEVEL_COMMIT, where there is no .git.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1
# Our kernels live in namespace pb, which their mangled names spell 2pb: the tools then skip torch's own kernels.
readonly OURS=2pb

run_build() {
  local arch
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .) || return 1
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  nvcc --version | tail -n 2
  CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$PYTHON" -m pip install -v --no-build-isolation --no-deps \
    -C cmake.define.PYBILEVEL_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$arch" -e . >"$SCRATCH/pip" 2>&1
  local status=$?
  grep -E 'error|CUDA kernels:|ptxas info|bytes stack frame' "$SCRATCH/pip"
  [ $status -eq 0 ] || { tail -n 60 "$SCRATCH/pip"; return 1; }
  "$PYTHON" -c 'import torch, pybilevel._C as c; print(c.build_info()); assert c.build_info()["cuda"]'
}

run_test() { "$PYTHON" -m pytest -q ${TESTS:-}; }

run_sanitize() {
  local tool status=0
  # Torch's cache would hide an overrun into a neighbouring block.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool: tiny benchmarks"
    checked "$tool" -m benchmarks --device cuda --tiny --contenders pybilevel 'pybilevel unroll' \
      --only $(cases) || status=1
  done
  # Tests poison fresh memory with NaN, which initcheck takes for an initialisation: the other tools only.
  for tool in memcheck racecheck; do
    echo "== $tool: tests marked gpu"
    checked "$tool" -m pytest -q -x -m 'gpu and not slow' ${TESTS:-} || status=1
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
  return $status
}

checked() {
  local tool=$1
  shift
  timeout 280 compute-sanitizer --tool "$tool" --kernel-name kns=$OURS --error-exitcode 9 --print-limit 20 \
    "$PYTHON" "$@" >"$SCRATCH/checked" 2>&1
  local status=$?
  if [ $status -eq 0 ]; then tail -n 2 "$SCRATCH/checked"; else tail -n 80 "$SCRATCH/checked"; fi
  echo "$tool: exit status $status"
  return $status
}

cases() { "$PYTHON" -c 'from benchmarks.cases import CASES; print(*(case.name for case in CASES))'; }

run_bench() { "$PYTHON" -m benchmarks --device cuda --json "$OUT/cuda.json"; }

run_precision() { "$PYTHON" -m benchmarks.precision; }

run_profile() {
  local name status=0
  for name in few-shot-5w1s few-shot-5w1s-long few-shot-5w1s-wide few-shot-20w5s hyper-cleaning; do
    echo "== $name"
    timeout 180 ncu --clock-control none --kernel-name-base mangled -k regex:$OURS --launch-skip 2 --launch-count 2 \
      --section SpeedOfLight --section Occupancy --section LaunchStats --section WarpStateStats \
      "$PYTHON" -m benchmarks --device cuda --only "$name" --contenders pybilevel --repeats 1 \
      --json "$SCRATCH/profiled.json" >"$SCRATCH/ncu" 2>&1 || status=1
    grep -vE '^==PROF==|^running' "$SCRATCH/ncu"
  done
  return $status
}

run_train() {
  local run command data shots pids=() status=0
  for run in ${RUNS:-5w1s 5w5s 20w1s 20w5s hyperclean}; do  # side by side: one of them does not fill the card
    case $run in
      hyperclean) command=(hyperclean --steps 1000) data=${DATA:+$DATA/mnist} ;;
      *)
        data=${DATA:+$DATA/omniglot} shots=${run##*w}
        command=(fewshot --ways "${run%%w*}" --shots "${shots%s}" --minutes "${MINUTES:-6}" --device cuda)
        ;;
    esac
    "$PYTHON" -m pybilevel.cli "${command[@]}" ${data:+--data "$data"} \
      --out "$SCRATCH/$run" >"$SCRATCH/$run.log" 2>&1 &
    pids+=($!)
  done
  for run in "${pids[@]}"; do wait "$run" || status=1; done
  tail -n 15 "$SCRATCH"/*.log
  tar -czf "$OUT/train.tar.gz" -C "$SCRATCH" --exclude='*.safetensors' .
  return $status
}

[ $# -gt 0 ] || set -- build test sanitize bench precision profile
for step in "$@"; do
  case $step in
    build | test | sanitize | bench | precision | profile | train) ;;
    *) echo "gpu.sh: no step '$step'; steps: build test sanitize bench precision profile train" >&2; exit 2 ;;
  esac
done
failed=()
for step in "$@"; do
  echo "=== $step"
  if ! run_"$step" 2>&1 | tee "$OUT/$step.log"; then
    failed+=("$step")
    [ "$step" = build ] && break
  fi
done
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
echo "all steps passed"
