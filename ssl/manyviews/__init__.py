"""Self-supervised pretraining whose runs can be trusted: objectives, methods, evaluation and monitoring."""

__version__ = "0.1.0"
