"""The demo: the whole way on scikit-learn's handwritten digits, judged by retrained models."""
