"""The command line. Nothing but ``bridge train`` needs torch."""

#: Every command and what it does; its module is imported where it is chosen.
COMMANDS = {
    "train": "train a model",
    "flops": "count the FLOPs of a batch",
    "compare": "models, layouts or conventions side by side",
    "check": "what a reported throughput was counted by",
    "plan": "time and cost of a training run, and which layouts fit",
    "inference": "count FLOPs and bytes of a request",
    "ledger": "count operations and spend a budget",
    "explore": "open the interactive page",
    "report": "write a run's charts as one HTML file",
    "rescore": "price a finished run again in another convention",
    "dashboard": "save a workspace of charts in a W&B project",
    "pack": "write packed fine-tuning data",
    "recipes": "list the recipes",
    "devices": "list the devices with a known peak",
    "integrations": "list the training loops the callback works in",
    "peak": "measure how near a recipe's matmuls come to the peak",
    "profile": "time a few steps module by module, with the FLOPs beside",
    "completion": "print a completion script",
}
