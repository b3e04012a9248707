#!/bin/sh
# Source this where the package is not installed but torch is: `. benchmarks/device_setup.sh DIR`.
# It makes `trainer_tui` importable from the checkout and installs what lies in DIR: wheels, and
# archives (.tar.xz) of installed packages.
wheels=${1:-.whl}
rooms=$(mktemp -d)
mkdir -p "$rooms/trainer_tui"
for room in engine data safety queue versions daemon tui; do ln -s "$PWD/$room" "$rooms/trainer_tui/$room"; done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
mkdir -p "$rooms/trainer_tui-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: trainer-tui\nVersion: %s\n' "$version" \
    >"$rooms/trainer_tui-$version.dist-info/METADATA"
if ls "$wheels"/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$rooms" "$wheels"/*.whl
fi
for part in "$wheels"/*.tar.xz; do
    [ -e "$part" ] && tar -xJf "$part" -C "$rooms"
done
packages="$rooms/nvidia_cutlass_dsl/dsl_packages"
[ -d "$packages" ] && export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH="$rooms${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
