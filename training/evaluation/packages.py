"""The versions of packages that figures may depend on, for the report."""

import importlib.metadata

PACKAGES = ("bapo-server", "torch", "transformers", "peft", "lm_eval")


def package_versions() -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
