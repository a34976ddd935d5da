"""The adapter for each framework, and the lines that add it to a training script.

docs/integrations.md shows the same lines; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec


@dataclass(frozen=True)
class Adapter:
    """The adapter for one framework.

    Attributes:
        framework: name of the framework, and title of its section in the documentation.
        module: the adapter's module in ``bridge.integrations``.
        package: the framework's name for pip; empty: its repository is on the path.
        imports: the module whose presence shows that the framework is installed.
        lines: the lines for a training script, or the command line that is used instead.
    """

    framework: str
    module: str
    package: str
    imports: str
    lines: str

    def version(self) -> str | None:
        """The framework's installed version; empty if unknown; None if it is not installed."""
        try:
            if find_spec(self.imports) is None:
                return None
        except (ImportError, ValueError):  # its parent package is missing, or it is marked as missing
            return None
        try:
            return metadata.version(self.package) if self.package else ""
        except metadata.PackageNotFoundError:  # a checkout on the path
            return ""


ADAPTERS = (
    Adapter(
        "Megatron-LM",
        "megatron_lm",
        "",
        "megatron.training",
        "torchrun --nproc-per-node 8 -m bridge.integrations.megatron_lm pretrain_gpt.py $FLAGS --bridge-convention exact",
    ),
    Adapter(
        "Megatron-Bridge",
        "megatron_bridge",
        "megatron-bridge",
        "megatron.bridge",
        """from bridge.integrations.megatron_bridge import observed
from bridge.training.callbacks import ThroughputCallback

throughput = ThroughputCallback(convention="exact")
pretrain(config, observed(forward_step, throughput), callbacks=[throughput])""",
    ),
    Adapter(
        "Hugging Face Trainer",
        "transformers_trainer",
        "transformers",
        "transformers",
        """from bridge.integrations.transformers_trainer import add_throughput

trainer = Trainer(model=model, args=args, train_dataset=dataset, eval_dataset=held_out, data_collator=collator)
throughput = add_throughput(trainer, convention="exact")
trainer.train()""",
    ),
    Adapter(
        "TRL",
        "transformers_trainer",
        "trl",
        "trl",
        """from bridge.integrations.transformers_trainer import add_throughput

throughput = add_throughput(trainer, convention="exact")
trainer.train()""",
    ),
    Adapter(
        "accelerate",
        "accelerate_loop",
        "accelerate",
        "accelerate",
        """from bridge.integrations.accelerate_loop import add_throughput

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
throughput = add_throughput(accelerator, model, optimizer, convention="exact")""",
    ),
    Adapter(
        "DeepSpeed",
        "deepspeed_engine",
        "deepspeed",
        "deepspeed",
        """from bridge.integrations.deepspeed_engine import add_throughput

engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
throughput = add_throughput(engine, convention="exact")""",
    ),
    Adapter(
        "Lightning",
        "lightning_trainer",
        "lightning",
        "lightning",
        """from bridge.config import from_huggingface
from bridge.integrations.lightning_trainer import ThroughputLightningCallback

throughput = ThroughputLightningCallback(from_huggingface(module.model.config), convention="exact")
trainer = Trainer(callbacks=[throughput], **options)
trainer.fit(module, dataloader, held_out)""",
    ),
    Adapter(
        "torchtitan",
        "torchtitan_trainer",
        "torchtitan",
        "torchtitan",
        """from bridge.integrations.torchtitan_trainer import add_throughput

throughput = add_throughput(trainer, model, convention="exact")
trainer.train()
trainer.close()""",
    ),
    Adapter(
        "Composer",
        "composer_trainer",
        "mosaicml",
        "composer",
        """from bridge.integrations.composer_trainer import ThroughputComposerCallback

throughput = ThroughputComposerCallback(config, convention="exact")
trainer = Trainer(model=model, train_dataloader=loader, callbacks=[throughput], **options)
trainer.fit()""",
    ),
    Adapter(
        "verl",
        "verl_flops",
        "verl",
        "verl",
        """from bridge.integrations.verl_flops import FlopsCounter

flops_counter = FlopsCounter(model.config)
achieved, peak = flops_counter.estimate_flops(batch_seqlens, delta_time)""",
    ),
    Adapter(
        "Your own loop",
        "plain",
        "torch",
        "torch",
        """from bridge.integrations.plain import Throughput

throughput = Throughput(model, convention="exact")
for batches in data:
    with throughput.step():
        for batch in batches:
            throughput.count(batch)
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
throughput.end()""",
    ),
)
