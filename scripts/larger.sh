#!/usr/bin/env bash
# The demo's data with a network of 33 M parameters: `make larger` runs this. All in build/larger.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=build/larger
data=$folder/brain
artifact=$folder/fcn_resnet50.fcn
mkdir -p "$folder"

python -m examples.brain_tissue.make_data --output "$data"
if [ ! -e "$folder/fcn_resnet50.pt" ]; then
    python -m examples.brain_tissue.larger --data "$data" --output "$folder/fcn_resnet50.pt"
fi
fcn-export "$folder/fcn_resnet50.pt" --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --size 240x200 \
    --classes "$data/classes.json" --eval "$data/images" "$data/labels" \
    --calibrate "$data/train_images" --output "$artifact" --force
fcn-bench "$artifact" --size 512x512 --scenario latency \
    --input "$data/images" --json "$folder/bench.json" --markdown "$folder/bench.md"
