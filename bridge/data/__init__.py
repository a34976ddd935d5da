"""Real text and how it becomes micro-batches, the same on every parallel layout."""

from bridge.data.loader import TextData, collate_for, micro_batches
from bridge.data.schedule import BatchSchedule, MicroBatchSampler

__all__ = ["BatchSchedule", "MicroBatchSampler", "TextData", "collate_for", "micro_batches"]
