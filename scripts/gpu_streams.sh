#!/bin/sh
# How many streams one NVIDIA GPU serves: batches by size, real sockets, several processes, the code before, GPU tests.
# Needs python3 with torch for CUDA, and what `mien infer` imports; nothing is installed, nothing is fetched.
# usage: scripts/gpu_streams.sh OUT [TREE]    OUT: folder for the figures. TREE: another checkout to compare with.
set -u
out=${1:?where the figures go}
before=${2:-}
python=${PYTHON:-python3}
engine=${ENGINE:-torch-cuda}
seconds=${SECONDS_EACH:-4}
budget=${BUDGET:-225}
began=$(date +%s)
ulimit -n 65536 2>/dev/null || true # connections of many sessions
mkdir -p "$out"
site=$(mktemp -d)
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 XDG_CACHE_HOME="$site/cache" XDG_STATE_HOME="$site/state"
carried=${PYTHONPATH:-}

lay() { # a checkout as the package `mien`
    mkdir -p "$2/mien" && cp -r "$1/src/mien/." "$1/models" "$1/engines" "$1/stream" "$2/mien/"
}

left() { echo $((budget - $(date +%s) + began)); }

step() { # seconds at most, name, command
    limit=$1 name=$2
    shift 2
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    if [ "$limit" -lt 12 ]; then echo "## $name: left out, no time"; return; fi
    echo "## $name (at $(($(date +%s) - began)) s)"
    timeout "$limit" "$@" 2>&1 | grep -v '^$' | cut -c1-1500
}

{
    lay . "$site/now"
    export PYTHONPATH="$site/now:$carried"
    "$python" -c "import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
    getconf _NPROCESSORS_ONLN
    run="$python -m mien bench multi --engine $engine --seconds $seconds"
    step 60 "${FEW:-256} streams" $run -n "${FEW:-256}" --json "$out/streams-256.json"
    step 40 "$((${FEW:-256} / 2)) streams" $run -n "$((${FEW:-256} / 2))" --json "$out/streams-128.json"
    step 60 "batches" $run --profile --json "$out/batches.json"
    step 60 "${MANY:-512} streams, 4 processes" $run -n "${MANY:-512}" --processes 4 --json "$out/streams-512.json"
    step 90 "${FOUR:-1024} streams, 4 processes" $run -n "${FOUR:-1024}" --processes 4 --json "$out/processes-4.json"
    if [ -n "$before" ]; then
        lay "$before" "$site/before"
        printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$@"\n' "$site/before:$carried" "$python" >"$site/python-before"
        chmod +x "$site/python-before"
        run_before="$run --python $site/python-before --checkpoint $before/models/weights/cmmsf.safetensors"
        step 45 "${OLD:-32} streams, code before" $run_before -n "${OLD:-32}" --json "$out/before.json"
        step 45 "$((${OLD:-32} / 2)) streams, code before" $run_before -n "$((${OLD:-32} / 2))"
    fi
    step 90 "GPU tests" "$python" -m pytest tests/engines/test_gpu.py tests/engines/test_predictor.py -q -m gpu \
        -o filterwarnings=default -p no:cacheprovider
    step 60 "${FOUR:-1024} streams, 8 processes" $run -n "${FOUR:-1024}" --processes 8
    echo "## took $(($(date +%s) - began)) s"
} 2>&1 | tee "$out/log.txt"
rm -rf "$site"
