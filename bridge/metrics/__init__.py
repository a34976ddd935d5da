"""What a run measures: statistics of the batches that ran, their sum over all ranks, and the rates that follow.

``batch_lengths``     reads lengths from a micro-batch that is still on the CPU (or, without a sync, on the device)
``batch_statistics``  adds them up, in the layout that the plan declares
``reduction``         one asynchronous SUM over all ranks
``timing``            seconds of an interval without evaluation and checkpoints
``throughput``        pure arithmetic: totals and seconds in, logged keys out
``spans``             stretches of a step that lie inside each other; ``time_marks`` puts them around what a rank does
``time_parts``        from the spans of all ranks to parts that add up to a step; ``pipeline_replay``, ``why`` say what they mean
``goodput``           the life of a job, restarts included
``prices``            what a finished run is priced again by
``peak``              what the device could do: from the table, from the configuration, or measured on a CPU
``keys``              every logged key with its unit and meaning
``trackers``          where rows of metrics go: JSON lines, W&B, TensorBoard, MLflow and more
"""
