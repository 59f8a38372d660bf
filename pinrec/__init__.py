"""The PinRec model and everything pure around it. Knows neither Kafka nor Ray."""

__version__ = "0.1.0"
