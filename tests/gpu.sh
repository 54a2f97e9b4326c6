#!/usr/bin/env bash
# Checks and measurements on a machine with a GPU, by any Python that has the packages: `make gpu PYTHON=python`.
# What matters most comes first; each part has a limit of its own, and none stops the others. Results go to $OUT.
#   DEVICE=cpu: a dry run without a GPU. SCALE=4: four times the limits.
set -u
cd "$(dirname "$0")/.."
export OUT=${OUT:-$PWD/runs/gpu} DEVICE=${DEVICE:-cuda}
export PYTHONPATH="$PWD/ssl:$PWD/datamodules:$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
failed=0
mkdir -p "$OUT"

part() { # SECONDS NAME COMMAND...
  local limit=$(($1 * ${SCALE:-1})) name=$2
  shift 2
  echo "== $name"
  timeout -k 5 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || { echo "!! $name: exit code $code"; failed=1; }
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null
part 60 versions "$python" -c "import torch, torchvision, lightning, timm, open_clip; print(torch.__version__, torchvision.__version__, lightning.__version__, timm.__version__, open_clip.__version__, torch.version.cuda)"
part 240 correct "$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py
part 150 device "$python" experiments/benchmarks/device.py --device "$DEVICE" --json "$OUT/device.json"
for loss in NTXent CLIP; do
  part 60 "loss-$loss" "$python" experiments/benchmarks/loss.py --loss $loss --device "$DEVICE" --json "$OUT/loss-$loss.json"
done
part 40 points "$python" experiments/benchmarks/points.py --device "$DEVICE" --json "$OUT/points.json"
exit $failed
