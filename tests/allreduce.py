"""Run by test_train.py under torchrun: one step's gradients, all-reduces and where they are."""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from inputcodes.data import DataSet
from inputcodes.distributed import join_processes
from train import TrainConfig, Trainer


def main(data_dir: str, out: str) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(
        vocab_size=256, n_layer=2, n_head=2, n_embd=256, block_size=16, batch_size=2,
        gradient_accumulation_steps=3,
    )  # fmt: skip
    with join_processes("cpu") as processes:
        trainer = Trainer(config, DataSet(Path(data_dir) / "tiny"), processes)
        events: list[tuple[str, int]] = []

        def reduce(state, bucket):
            events.append(("reduce", bucket.buffer().numel()))
            return allreduce_hook(state, bucket)

        trainer.model.register_comm_hook(None, reduce)
        for weight in trainer.raw_model.parameters():
            weight.register_post_accumulate_grad_hook(
                lambda weight: events.append(("gradient", weight.numel()))
            )
        batches = trainer.rows.batches(0, processes)
        trainer.train_step(batches)  # DDP arranges its buckets in the first
        events.clear()
        trainer.train_step(batches)
        found = {"events": list(events), "places": [places(trainer)]}
        trainer.train_step(batches)
        found["places"].append(places(trainer))
        if processes.first:
            Path(out).write_text(json.dumps(found))


def places(trainer: Trainer) -> list[int]:
    """The address of the memory that holds each weight's gradient."""
    return [w.grad.untyped_storage().data_ptr() for w in trainer.raw_model.parameters()]


if __name__ == "__main__":
    main(*sys.argv[1:])
