"""One process a loaded model: it opens, measures and answers. Standard library, numpy and its runtime only."""
