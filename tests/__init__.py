"""A package, so that no other one called tests takes its place in worker processes (label-studio-converter installs
one)."""
