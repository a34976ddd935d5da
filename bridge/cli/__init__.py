"""The command line. Nothing but ``bridge train`` needs torch."""

#: Every command and what it does; its module is imported where it is chosen.
COMMANDS = {
    "train": "train a model",
    "flops": "count the FLOPs of a batch",
    "compare": "compare models, layouts or conventions side by side",
    "check": "find the convention behind a reported throughput",
    "plan": "estimate time and cost of a training run, or find the layouts that fit",
    "inference": "count FLOPs and bytes of a request",
    "ledger": "count operations and spend a budget",
    "explore": "open the interactive page",
    "report": "write a run's charts as one HTML file",
    "rescore": "price a finished run again in another convention",
    "goodput": "show where the time of a job went, restarts included",
    "dashboard": "save a workspace of charts in a W&B project",
    "pack": "write packed fine-tuning data",
    "recipes": "list the recipes",
    "devices": "list the devices with a known peak",
    "integrations": "list the training loops that the callback supports",
    "peak": "measure how close a recipe's matmuls come to the peak",
    "profile": "compare each module's time with its FLOPs over a few steps",
    "completion": "print a completion script",
}
