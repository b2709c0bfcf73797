"""The same microbenchmarks for zray and its peers; ``python -m benchmarks.compare`` runs them."""
