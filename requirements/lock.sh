#!/bin/sh
# Resolves the lock files anew from the .in files (needs uv; run it where the CPU torch is found:
# pass --find-links or --extra-index-url through UV's own variables). Commit what it writes.
set -eu
cd "$(dirname "$0")"
compile="uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet"
$compile --override overrides.txt cpu.in -o cpu.txt
# The three that are overridden to "never" would only be noise in the lock.
sed -i -E '/^(torchaudio|torchcodec|torchvision)==/d' cpu.txt
$compile gpu.in -o gpu.txt
$compile dev.in -o dev.txt
