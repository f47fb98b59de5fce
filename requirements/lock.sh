#!/bin/sh
# Resolves the lock files anew from the .in files (needs uv; run it where the CPU torch is found:
# pass --find-links or --extra-index-url through UV's own variables). Commit what it writes.
set -eu
cd "$(dirname "$0")"
compile="uv pip compile --universal --python-version 3.11.0 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet"
$compile --override overrides.txt cpu.in -o cpu.txt
# The three that are overridden to "never" would only be noise in the lock.
sed -i -E '/^(torchaudio|torchcodec|torchvision)==/d' cpu.txt
$compile gpu.in -o gpu.txt
# dev.txt and eval.txt are what comes on top of either: packages that cpu.txt has on every platform are
# left to it, so that the same file goes with gpu.txt, whose pins may differ.
names=$(sed -n '/sys_platform/!s/^\([A-Za-z0-9_.-]*\)==.*/\1/p' cpu.txt | sort -u)
for set in dev eval; do
    $compile --override overrides.txt $set.in -o $set.full.txt
    grep -v -x -E "($(echo "$names" | paste -sd '|'))==.*|(torchaudio|torchcodec|torchvision)==.*" $set.full.txt > $set.txt
    rm $set.full.txt
done
