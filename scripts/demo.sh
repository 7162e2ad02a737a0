#!/usr/bin/env bash
# The main job, end to end, on real data: `make demo` runs this. Everything lands in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=build/demo
data=$demo/brain
artifact=$demo/brain_tissue.fcn
arch=examples.brain_tissue.network:brain_tissue_fcn
rm -rf "$demo"
mkdir -p "$demo"
export XDG_STATE_HOME="$PWD/$demo/state" # the choice that --tune keeps is the demo's own

step() {
    printf '\n=== %s\n$ %s\n' "$1" "${*:2}"
    "${@:2}"
}

step "Write real MRI slices with their labels, and a video of all of them" \
    python -m examples.brain_tissue.make_data --output "$data"

step "Export the trained network in every precision, verify it, measure each one's mean IoU" \
    fcn-export examples/brain_tissue/brain_tissue.pt \
    --arch "$arch" \
    --color gray --mean 0.5 --std 0.25 --size 240x200 \
    --classes "$data/classes.json" --eval "$data/images" "$data/labels" \
    --calibrate "$data/train_images" \
    --output "$artifact" --force

step "Say what will run it here, and why" \
    fcn-doctor "$artifact"

step "Measure every variant against PyTorch, and keep the fastest as this machine's choice" \
    fcn-bench "$artifact" --arch "$arch" --input "$data/images" --eval "$data/images" "$data/labels" \
    --tune --markdown "$demo/bench.md" --json "$demo/bench.json"

step "Say what will run it now, and why" \
    fcn-doctor "$artifact"

step "Segment one slice that the network was not trained on" \
    fcn-segment "$data/images/slice_090.png" -m "$artifact" -o "$demo/overlay"

step "Segment the video" \
    fcn-segment "$data/fly_through.mp4" -m "$artifact" -o "$demo/fly_through_overlay.mp4"

printf '\nDone in %d s. Look at:\n' "$SECONDS"
printf '  %-10s %s\n' \
    artifact "$PWD/$artifact" \
    report "$PWD/$demo/bench.md" \
    overlay "$(ls "$PWD/$demo/overlay"/*.png)" \
    video "$PWD/$demo/fly_through_overlay.mp4"
