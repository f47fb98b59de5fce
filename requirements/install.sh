#!/bin/sh
# Installs a locked set into the running environment: the one installer of `make setup` and of the
# Dockerfile. Owns the order and the fallback; what is installed is in the lock files.
#
#   requirements/install.sh cpu|gpu [dev|eval]
#
# Nothing is resolved (--no-deps): the locks are complete, and resolving would pull in CUDA builds
# of torchvision, torchaudio and torchcodec, beside which a CPU torch cannot import models.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
device=${1:?"usage: install.sh cpu|gpu [dev]"}
pip="python -m pip --disable-pip-version-check"

if [ "$device" = cpu ]; then
    torch=$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' "$here/cpu.txt")
    # First as the installer is configured, then from PyTorch's own index of CPU builds.
    $pip install --no-deps "$torch" ||
        $pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
set -- -r "$here/$device.txt" ${2:+-r "$here/$2.txt"}
$pip install --no-deps "$@"
# The project itself, editable: its models and configs stay where they are in the checkout. The
# build backend is the locked setuptools, so nothing is fetched for it.
$pip install --no-deps --no-build-isolation --editable "$here/.."
