"""Measures a run: statistics of its batches, their sum over all ranks, and the rates that follow.

``batch_lengths``     reads lengths from a micro-batch that is still on the CPU (or, without a sync, on the device)
``batch_statistics``  adds them up, in the layout that the plan declares
``reduction``         one asynchronous SUM over all ranks
``timing``            seconds of an interval without evaluation and checkpoints
``throughput``        pure arithmetic: totals and seconds in, logged keys out
``spans``             nested spans of a step; ``time_marks`` marks them in the running loop
``time_parts``        splits a step into parts that add up, from the spans of all ranks; ``pipeline_replay``, ``why`` explain them
``goodput``           the life of a job, restarts included
``prices``            what a finished run is priced again by
``peak``              what the device could do: from the table, from the configuration, or measured on a CPU
``keys``              every logged key with its unit and meaning
``trackers``          where rows of metrics go: JSON lines, W&B, TensorBoard, MLflow and more
"""
