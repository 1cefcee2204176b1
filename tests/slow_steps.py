"""Run by test_train.py: train.py whose micro-steps take 0.5 s from the fourth step on."""

import sys
import time

import torch

import train


class SlowGPT(train.GPT):
    calls = 0

    def forward(self, ids, targets=None, layout=None):
        if torch.is_grad_enabled():
            SlowGPT.calls += 1
            if SlowGPT.calls > 3 * accumulate:
                print("slow", flush=True)
                time.sleep(0.5)
        return super().forward(ids, targets, layout)


if __name__ == "__main__":
    (accumulate,) = (
        int(word.split("=")[1])
        for word in sys.argv
        if word.startswith("--gradient_accumulation_steps")
    )
    train.GPT = SlowGPT
    with train.one_cause():
        train.run_main(train.main, train.TrainConfig, train.USAGE)
