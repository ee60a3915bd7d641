"""Export to Core AI, Apple's runtime of 2026: the decoder as a graph of its own, written without tracing."""
