"""What a run shows of itself: readings, pictures, and an alarm when it collapses."""

from manyviews.monitoring.board import Board
from manyviews.monitoring.collapse import CollapseAlarm
from manyviews.monitoring.monitor import Monitor

__all__ = ["Board", "CollapseAlarm", "Monitor"]
