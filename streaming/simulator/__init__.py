"""A simulated town: a source of events that reads well, and the oracle that closed-loop measurements are taken against.

It knows neither Kafka nor HTTP: it makes messages of `streaming.schema`, and answers recommendations with events.
"""

from streaming.simulator.config import TownConfig
from streaming.simulator.live import LiveMessage, LiveTown, Withdrawal
from streaming.simulator.town import Town

__all__ = ["LiveMessage", "LiveTown", "Town", "TownConfig", "Withdrawal"]
